"""Imported plans against the origins' own sampling loops, written out from their papers and settings, in float64.

Their loops count steps as they do, in their direction of time, on their network's own output; whole states are compared
after as many steps as `few` says, and the published numbers of steps stand in the table.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.composition import compose
from gen.diffusion.noise import Noise
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.models.interop.checkpoints import import_checkpoint
from gen.samplers.grids.shift import Shift
from tests.models.interop import published
from tests.models.interop.test_checkpoints import DDT, EDM2, ORIGINS, saved

N = 2
NOISE = Noise(tuple(range(N)))
CLASSES = published.CLASSES
Y = torch.tensor([1, 4])
NULL = torch.full_like(Y, CLASSES)


def load(tmp_path, origin, spec):
    make = ORIGINS[origin][1]
    import_checkpoint(saved(tmp_path, make(), f"{origin}.pt"), spec, out=tmp_path / "out")
    pipeline = gen.load(tmp_path / "out")
    pipeline.denoiser.net.double()
    return pipeline


def start(pipeline):
    return NOISE.normal("start", pipeline.state_shape).double()


def ours(pipeline, **changes):
    how, unit = pipeline.plan(**changes), start(pipeline)
    times = how.grid.times(pipeline.denoiser.path, how.steps)
    loop = compose(pipeline.denoiser, times, how.solver, how.guide, {"y": Y}, unit)
    x = pipeline.denoiser.path.start(unit, times[0])
    return integrate(loop.f, x, loop.grid, how.solver, cond={"y": Y}, noise=NOISE)


def network(pipeline):
    """The origin's network as its loop calls it: (x, its own time, labels) -> its raw output, all channels."""
    net, spec = pipeline.denoiser.net, pipeline.denoiser.net.spec
    flipped = getattr(spec, "time_convention", "noise") == "data"
    out = {}

    def call(x, t, y):
        def tap(site, compute, h):
            out[site] = compute(h)
            return out[site]

        told = torch.full((len(x),), float(t), dtype=torch.float64)
        first = net(x, 1 - told if flipped else told, {"y": y}, tap=tap)
        return out["final"] if getattr(spec, "learn_sigma", False) else first

    return call


def guided(net, x, t, scale, channels=None, on=True):
    """Classifier-free guidance of a raw output, of its first channels alone."""
    c, u = net(x, t, Y), net(x, t, NULL)
    k = c.shape[1] if channels is None else channels
    return torch.cat([(u + scale * (c - u))[:, :k], c[:, k:]], 1) if on else c


def draw(i, x):
    return NOISE.normal(i, x.shape[1:]).double()


# The origins' loops ---------------------------------------------------------------------------------------------------


def sit_ode(net, x, _):
    """From noise at 0 to data at 1; what their adaptive rule approximates, by a fine classical one."""

    def v(x, t):
        return guided(net, x, t, 1.5, 3)[:, :4]

    m = 24
    for i in range(m):
        t, h = i / m, 1 / m
        a = v(x, t)
        b = v(x + h / 2 * a, t + h / 2)
        c = v(x + h / 2 * b, t + h / 2)
        d = v(x + h * c, t + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def sit_sde(net, x, n):
    """N - 1 steps of Euler-Maruyama on linspace(0, .96, N), w = sigma, and the mean of the last one of .04."""
    times = torch.linspace(0, 0.96, n, dtype=torch.float64)
    for i, t in enumerate(times):
        dt = times[1] - times[0] if i < n - 1 else 0.04
        v = guided(net, x, t, 1.5, 3)[:, :4]
        sigma = 1 - t
        score = (t * v - x) / (sigma**2 + t * sigma)
        x = x + (v + sigma * score) * dt
        if i < n - 1:
            x = x + torch.sqrt(2 * sigma * dt) * draw(i, x)
    return x


def repa_sde(net, x, n, scale=1.8, high=0.7):
    """Time falls from 1 to .04 in N - 1 steps, then one of the mean to 0; diffusion 2 t. REG's too, with its token."""
    times = torch.cat([torch.linspace(1, 0.04, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    for i in range(n):
        t, dt = times[i], times[i + 1] - times[i]
        v = guided(net, x, t, scale, on=bool(t <= high))
        score = ((1 - t) / -1 * v - x) / (t**2 + (1 - t) * t)
        x = x + (v - 0.5 * 2 * t * score) * dt
        if i < n - 1:
            x = x + torch.sqrt(2 * t) * torch.sqrt(-dt) * draw(i, x)
    return x


def repa_ode(net, x, n):
    times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * guided(net, x, t, 1.8, on=bool(t <= 0.7))
    return x


def ddt(scale):
    def loop(net, x, n):
        times = torch.cat([torch.linspace(0, 0.96, n, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * guided(net, x, t, scale, on=bool(0.3 < t < 1.0))
        return x

    return loop


def lightning_dit(net, x, n):
    """N times, so N - 1 steps."""
    t = torch.linspace(0, 1, n, dtype=torch.float64)
    times = 0.3 * t / (1 + (0.3 - 1) * t)
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * guided(net, x, t, 6.7, 3, on=bool(t >= 0.125))
    return x


def rae(shift):
    def loop(net, x, n):
        t = 1 - torch.linspace(0, 1 - 1 / 1000, n, dtype=torch.float64)
        times = shift * t / (1 + (shift - 1) * t)
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * net(x, t, Y)
        return x

    return loop


def edm2(net, x, n):
    """Karras et al. 2022, algorithm 1, on the preconditioned network."""

    def d(x, sigma):
        total = (sigma**2 + 0.25) ** 0.5
        return 0.25 / total**2 * x + sigma * 0.5 / total * net(x / total, math.log(sigma) / 4, Y)

    i = torch.arange(n, dtype=torch.float64)
    times = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = [*times.tolist(), 0.0]
    x = x * times[0]
    for t, s in itertools.pairwise(times):
        slope = (x - d(x, t)) / t
        there = x + (s - t) * slope
        x = there if s == 0 else x + (s - t) * (slope + (there - d(there, s)) / s) / 2
    return x


def respaced(n):
    """Betas of DDPM's linear table in n of its 1000 timesteps, and these."""
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    kept = [round(i * 999 / (n - 1)) for i in range(n)]
    bars = bar[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    return kept, bars, before, 1 - bars / before


def dit_ddim(net, x, n):
    kept, bars, before, _ = respaced(n)
    x = x * (1 - bars[-1]).sqrt()  # there the start is unit noise, which differs by 2e-5
    for i in reversed(range(n)):
        eps = guided(net, x, kept[i], 1.5, 3)[:, :4]
        clean = (x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()
        x = before[i].sqrt() * clean + (1 - before[i]).sqrt() * eps
    return x


def dit_ddpm(net, x, n):
    """Ho et al. 2020, eq. 7, with the variance of Nichol & Dhariwal 2021, eq. 15: the conditional network's."""
    kept, bars, before, betas = respaced(n)
    x = x * (1 - bars[-1]).sqrt()
    for i in reversed(range(n)):
        out = guided(net, x, kept[i], 1.5, 3)
        eps, v = out[:, :4], out[:, 4:]
        clean = (x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()
        mean = before[i].sqrt() * betas[i] / (1 - bars[i]) * clean
        mean = mean + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - bars[i]) * x
        if i == 0:
            return mean
        small = betas[i] * (1 - before[i]) / (1 - bars[i])
        log = (v + 1) / 2 * betas[i].log() + (1 - (v + 1) / 2) * small.log()
        x = mean + (log / 2).exp() * draw(n - 1 - i, x)
    raise AssertionError


# (origin, spec for --from, their loop, their number of steps, ours, a smaller number of theirs)
PLANS = {
    "sit-ode": ("sit", "sit", sit_ode, None, 62, None),
    "sit-sde": ("sit", {"name": "sit", "sampler": "sde"}, sit_sde, 250, 250, 12),
    "repa-sde": ("repa", "repa", repa_sde, 250, 250, 12),
    "repa-ode": ("repa", {"name": "repa", "sampler": "ode"}, repa_ode, 250, 250, 12),
    "reg": ("reg", "reg", lambda *given: repa_sde(*given, scale=2.3, high=0.85), 250, 250, 12),
    "ddt": ("ddt", DDT, ddt(2.0), 250, 250, 12),
    "lightning_dit": ("lightning_dit", "lightning_dit", lightning_dit, 250, 249, 12),
    "rae": ("rae", "rae", rae(1.0), 50, 49, 12),
    "edm2": ("edm2", EDM2, edm2, 32, 32, 8),
    "dit-ddim": ("dit", "dit", dit_ddim, 250, 250, 12),
    "dit-ddpm": ("dit", {"name": "dit", "sampler": "ddpm"}, dit_ddpm, 250, 250, 12),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_an_imported_plan_is_the_origin_s_own_loop(tmp_path, name):
    origin, spec, loop, theirs, steps, few = PLANS[name]
    pipeline = load(tmp_path, origin, spec)
    assert pipeline.sampler.steps == steps
    changes = {"steps": 24} if few is None else {"steps": few + steps - theirs}
    expected = loop(network(pipeline), start(pipeline), few)
    got = ours(pipeline, **changes)
    assert float((got - expected).norm() / expected.norm()) < (1e-3 if few is None else 1e-9)


def test_rae_s_shift_and_end_and_ddt_s_guide_of_large_images(tmp_path):
    spec = {**DDT, "size": 64}
    assert load(tmp_path, "ddt", spec).sampler.guide.scale == 3.0
    shift, u = math.sqrt(768 * 256 / 4096), 1 - torch.linspace(0, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(Shift(shift, stop=0.001).times(Flow(), 49), shift * u / (1 + (shift - 1) * u))


def test_learned_variances_need_a_network_that_learned_them(tmp_path):
    pipeline = load(tmp_path, "dit", "dit")
    learned = {"name": "ancestral", "variance": "learned"}
    net = pipeline.denoiser.net
    plain = replace(net.spec, learn_sigma=False).build()
    with pytest.raises(UserError, match="its spec needs learn_sigma"):
        replace(pipeline, denoiser=replace(pipeline.denoiser, net=plain)).sample(1, solver=learned, steps=2)
    with pytest.raises(UserError, match=r"eta = 0\.5 beside variance"):
        pipeline.sample(1, solver={**learned, "eta": 0.5}, steps=2)
