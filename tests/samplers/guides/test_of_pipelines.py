"""The guides of pipelines of diffusers, by their formulas; tests/pipelines has them as the pipelines themselves do."""

from __future__ import annotations

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import CountingDenoiser, Denoiser
from gen.diffusion.parameterisation import Eps, Velocity
from gen.diffusion.path import DDPM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Skip
from gen.models.dit import DiT
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.dynamic import DynamicCFG
from gen.samplers.guides.renorm import Renorm
from gen.samplers.guides.skip_layers import SkipLayers
from gen.samplers.solvers.euler import Euler

GRID = torch.linspace(1, 0, 11, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(torch.nn.Module):
    """A network that is told what to say: a conditional and an unconditional output, and a share of x."""

    def __init__(self, c, u):
        super().__init__()
        self.c, self.u = c, u

    def forward(self, x, t, cond, *, s=None, tap=None):
        return (self.c if bool(cond["on"].all()) else self.u) + 0.1 * x

    def null(self, cond):
        return {"on": torch.zeros_like(cond["on"])}


def outputs(guide, shape, path=None, parameterisation=None, t=0.5):
    """c, u and the guided output of the network, in its own terms."""
    path, parameterisation = path or Flow(), parameterisation or Velocity()
    c, u, x = (random(*shape, seed=i) for i in range(3))
    t = torch.tensor(t * path.t1, dtype=torch.float64)
    f = guide(Denoiser(Linear(c, u), path, parameterisation), GRID * path.t1)
    got = parameterisation.target(path, *f(x, t, {"on": torch.ones(shape[0])}), t)
    return c + 0.1 * x, u + 0.1 * x, got


# Renorm


def test_renorm_over_tokens_is_that_of_qwen_image():
    """comb * (cond_norm / noise_norm) over the last dimension of packed latents; the channels of an unpacked image."""
    for shape, dim in (((3, 6, 5), -1), ((3, 5, 2, 4), 1), ((3, 5, 2, 2, 4), 1)):
        c, u, got = outputs(Renorm(4.0), shape)
        comb = u + 4 * (c - u)
        torch.testing.assert_close(got, comb * c.norm(dim=dim, keepdim=True) / comb.norm(dim=dim, keepdim=True))


def test_renorm_over_rows_is_that_of_lumina2():
    c, u, got = outputs(Renorm(4.0, over="rows"), (2, 3, 4, 5))
    comb = u + 4 * (c - u)
    torch.testing.assert_close(got, comb * (c.norm(dim=-1, keepdim=True) / comb.norm(dim=-1, keepdim=True)))
    assert not torch.allclose(got, outputs(Renorm(4.0), (2, 3, 4, 5))[2])


@pytest.mark.parametrize("cap", [0.2, 1.0, 1.7, 50.0])
def test_renorm_over_the_sample_with_a_cap_is_that_of_z_image(cap):
    """pos + w (pos - neg), shortened to cap |pos| if it is longer."""
    w = 5.0
    c, u, got = outputs(Renorm(1 + w, over="sample", cap=cap), (2, 3, 4, 5))
    for pos, neg, ours in zip(c, u, got, strict=True):
        pred = pos + w * (pos - neg)
        if pred.norm() > cap * pos.norm():
            pred = pred * (cap * pos.norm() / pred.norm())
        torch.testing.assert_close(ours, pred)
    torch.testing.assert_close(outputs(CFG(1 + w), (2, 3, 4, 5))[2], c + w * (c - u))


def test_a_network_that_says_zero_is_not_divided_by():
    x, zero = random(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    f = Denoiser(Linear(zero, zero), Flow(), Velocity())
    t = torch.tensor(0.5, dtype=torch.float64)
    for over in ("tokens", "rows", "sample"):
        got = Renorm(3.0, over=over)(f, GRID)(0 * x, t, {"on": torch.ones(2)})
        assert torch.equal(got.x0, zero) and torch.equal(got.eps, zero)


def test_lumina2_stops_after_a_share_of_the_steps():
    """cfg_trunc_ratio: guided while (i + 1) / N <= ratio."""
    for n in (7, 10, 28):
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        for ratio in (0.2, 0.25, 0.7, 1.0):
            guide = Renorm(4.0, over="rows", steps=(0.0, ratio))
            ours = [bool(guide.active(Flow(), times[i], times)) for i in range(n)]
            assert ours == [not (i + 1) / n > ratio for i in range(n)], (n, ratio)


# CogVideoX


@pytest.mark.parametrize("n", [10, 50])
def test_the_dynamic_scale_is_that_of_cogvideox(n):
    path, guidance_scale, shape = DDPM(), 6.0, (2, 3)
    c, u, x = (random(*shape, seed=i) for i in range(3))
    times = torch.linspace(path.t1, 0, n + 1, dtype=torch.float64)
    f = DynamicCFG(1 + guidance_scale)(Denoiser(Linear(c, u), path, Eps()), times)
    given = DynamicCFG(1 + guidance_scale, num_steps=n)(Denoiser(Linear(c, u), path, Eps()), times[:2])
    scales = []
    for t in (*times[:-1], times[0] - 17, times[-2] / n):
        k = int(t.round()) - 1
        w = 1 + guidance_scale * ((1 - math.cos(math.pi * ((n - k) / n) ** 5.0)) / 2)
        got = f(x, t, {"on": torch.ones(2)}).eps
        assert torch.equal(got, given(x, t, {"on": torch.ones(2)}).eps)
        torch.testing.assert_close(got, u + 0.1 * x + w * (c - u), rtol=1e-7, atol=1e-7)
        scales.append(w)
    assert min(scales) < 2 and max(scales) > 5


# Skip layers


class Blocks(torch.nn.Module):
    """Two residual blocks whose outputs add up."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        for i, weight in enumerate((0.3, -0.7)):

            def block(h, weight=weight):
                return torch.tanh(weight * h + cond["y"][:, None])

            x = x + (block(x) if tap is None else tap(f"blocks.{i}", block, x))
        return x

    def null(self, cond):
        return {"y": torch.zeros_like(cond["y"])}


def test_skip_layers_are_those_of_stable_diffusion_3():
    """u + w (c - u) + s (c - c_skip) at steps i with .01 N < i < .2 N, and three evaluations there."""
    f, x, cond = Denoiser(Blocks(), Flow(), Velocity()), random(4, 3), {"y": random(4)}
    for n in (5, 10, 28):
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        guide = SkipLayers(4.0, sites=("blocks.1",), skip_scale=2.8)
        for i, t in enumerate(times[:-1]):
            counted = CountingDenoiser(f)
            got, skips = guide(counted, times)(x, t, cond), n * 0.01 < i < n * 0.2
            c, u, plain = f(x, t, cond), f(x, t, f.null(cond)), CFG(4.0)(f, times)(x, t, cond)
            worse = f(x, t, cond, tap=Skip(("blocks.1",)))
            assert counted.calls == 2 + skips
            for ours, base, p, q in zip(got, plain, c, worse, strict=True):
                torch.testing.assert_close(ours, base + 2.8 * skips * (p - q))
            assert not torch.allclose(c.x0, u.x0)


def test_skip_layers_of_some_samples_and_channels():
    f, x, cond = Denoiser(Blocks(), Flow(), Velocity()), random(2, 3), {"y": random(2)}
    guide, t = SkipLayers(4.0, sites=("blocks.?",), channels=2), torch.tensor([0.9, 0.5], dtype=torch.float64)
    got, plain = guide(f, GRID)(x, t, cond), CFG(4.0, channels=2)(f, GRID)(x, t, cond)
    assert torch.equal(got.x0[1], plain.x0[1]) and torch.equal(got.x0[0, 2], plain.x0[0, 2])
    assert not torch.isclose(got.x0[0, :2], plain.x0[0, :2]).any()


def test_skip_layers_of_a_dit():
    net = DiT(size=4, channels=1, patch=2, width=16, depth=3, heads=2, classes=3).build().double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    f, x, cond = Denoiser(net, Flow(), Velocity()), random(2, 1, 4, 4), {"y": torch.tensor([0, 2])}
    ends = [
        integrate(guide(f, GRID), x, GRID, Euler(), cond=cond)
        for guide in (
            SkipLayers(3.0, sites=("blocks.1",)),
            SkipLayers(3.0, sites=("blocks.1",), skip_scale=0.0),
            CFG(3.0),
        )
    ]
    assert torch.equal(ends[1], ends[2]) and not torch.allclose(ends[0], ends[1])
    with pytest.raises(UserError, match=r"sites = \('blocks.7', 'blocks.8', 'blocks.9'\); the network has no block"):
        integrate(SkipLayers(3.0)(f, GRID), x, GRID, Euler(), cond=cond)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Renorm(over="pixels"), "over = 'pixels'|over"),
        (lambda: Renorm(cap=0.0), "cap = 0.0"),
        (lambda: DynamicCFG(power=0), "power = 0"),
        (lambda: SkipLayers(skip_steps=(0.2, 0.1)), "0 <= start < stop <= 1"),
        (lambda: SkipLayers(sites=()), "name the blocks"),
    ],
)
def test_wrong_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
