"""Sharing DDT's encoder between steps."""

import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import V
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.models.ddt import DDT
from gen.models.dit_dh import DiTDH
from gen.samplers.caches.ddt_shared import DDTShared, similarity
from gen.samplers.caches.shared import sharing_loss
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun

STEPS = 6
TIMES = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
SPECS = [
    DDT(size=8, channels=1, classes=3, width=16, encoder=2, decoder=1, heads=2),
    DiTDH(
        size=8, patch=2, channels=1, classes=3, width=16, depth=2, heads=2, head_width=24, head_depth=1, head_heads=2
    ),
]


def denoiser(spec, dtype=torch.float32):
    torch.manual_seed(0)
    net = spec.build()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return Denoiser(net.to(dtype).eval().requires_grad_(False), Flow(), V())


def start(n=3, dtype=torch.float32):
    noise = Noise(tuple(sample_seeds(0, n)))
    return noise.normal("start", (1, 8, 8)).to(dtype), {"y": noise.integers("y", 3)}


class Published:
    """The published loop by hand: the encoder's output is kept, in each branch, until it is to be made again."""

    def __init__(self, again):
        self.again, self.step, self.kept = again, -1, {}

    def bind(self, context):
        def tap(site, compute, h):
            if site != "encoder":
                return compute(h)
            if context.step in self.again:
                self.kept[context.branch] = compute(h)
            return self.kept[context.branch]

        return tap


@pytest.mark.parametrize("spec", SPECS, ids=["ddt", "dit_dh"])
@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
def test_an_interval_of_one_is_no_sharing_to_the_bit(spec, solver):
    f, (x, cond) = CFG(2.0, interval=(0.3, 0.9))(denoiser(spec), TIMES), start()
    run = DDTShared(interval=1).start(STEPS)
    shared = integrate(f, x, TIMES, solver, cond=cond, tap=run)
    assert torch.equal(shared, integrate(f, x, TIMES, solver, cond=cond))
    assert run.report().hits == 0


@pytest.mark.parametrize("spec", SPECS, ids=["ddt", "dit_dh"])
@pytest.mark.parametrize(
    ("cache", "again"),
    [
        (DDTShared(2), {0, 2, 4}),
        (DDTShared(3), {0, 3}),
        (DDTShared(mask=(True, True, False, False, True, False)), {0, 1, 4}),
    ],
    ids=["2", "3", "mask"],
)
def test_between_its_steps_the_encoder_does_not_run_and_the_decoder_does(spec, cache, again):
    f, (x, cond) = CFG(2.0)(denoiser(spec), TIMES), start()
    run = cache.start(STEPS)
    shared = integrate(f, x, TIMES, Euler(), cond=cond, tap=run)
    assert torch.equal(shared, integrate(f, x, TIMES, Euler(), cond=cond, tap=Published(again)))
    assert not torch.equal(shared, integrate(f, x, TIMES, Euler(), cond=cond))
    report = run.report()
    computed = {(p.step, site) for p, row in zip(report.contexts, report.computed, strict=True)
                for site, done in zip(report.sites, row, strict=True) if done}  # fmt: skip
    assert {step for step, site in computed if site == "encoder"} == again
    assert {step for step, site in computed if site == "blocks.1.attn"} == again  # in the encoder
    assert {step for step, site in computed if site == "blocks.2.attn"} == set(range(STEPS))  # in the decoder


def test_similarity_is_the_mean_cosine_of_tokens():
    f, (x, cond) = denoiser(SPECS[0], torch.float64), start(2, torch.float64)
    seen = []

    class Watch:
        def bind(self, context):
            def tap(site, compute, h):
                out = compute(h)
                if site == "encoder":
                    seen.append(out)
                return out

            return tap

    integrate(f, x, TIMES, Euler(), cond=cond, tap=Watch())
    measured = similarity(f, x, TIMES, Euler(), cond=cond)
    assert torch.equal(measured.diagonal(), torch.ones(STEPS, dtype=torch.float64))
    for i, j in itertools.combinations(range(STEPS), 2):
        expected = torch.nn.functional.cosine_similarity(seen[i], seen[j], dim=-1).mean()
        torch.testing.assert_close(measured[i, j], expected, rtol=0, atol=1e-6)
        assert measured[i, j] < 1


@pytest.mark.parametrize("interval", [1, 2, 3, 6, 9])
def test_the_best_steps_are_the_best_of_all(interval):
    f, (x, cond) = denoiser(SPECS[0]), start(8)
    measured = similarity(f, x, TIMES, Euler(), cond=cond)
    found = DDTShared(interval).best(measured)
    count = max(1, STEPS // interval)
    assert sum(found.mask) == count and found.mask[0]
    rest = itertools.combinations(range(1, STEPS), count - 1)
    masks = [tuple(i in (0, *chosen) for i in range(STEPS)) for chosen in rest]
    assert sharing_loss(measured, found.mask) == pytest.approx(
        min(sharing_loss(measured, mask) for mask in masks), abs=1e-12
    )
    if interval == 1:
        assert sharing_loss(measured, found.mask) == 0
    assert build("samplers.caches", {"name": "ddt_shared", "mask": list(found.mask), "interval": interval}) == found


class Lazy(Euler):
    """Leaves out the first step."""

    def step(self, f, path, x, t, s, state, noise):
        return (x, state) if t == 1 else super().step(f, path, x, t, s, state, noise)


def test_a_network_without_an_encoder_is_told_so():
    f, (x, cond) = denoiser(SPECS[0]), start()
    with pytest.raises(UserError, match="no site of this network matches 'encode'"):
        similarity(f, x, TIMES, Euler(), cond=cond, sites=("encode",))
    with pytest.raises(UserError, match="no branch computed encoder at every one of the 6 steps"):
        similarity(f, x, TIMES, Lazy(), cond=cond)
    with pytest.raises(UserError, match="interval = 0"):
        DDTShared(0)
