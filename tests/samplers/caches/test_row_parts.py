"""Gates that decide for each row: the rows that ask are computed as a smaller batch, and nothing else changes."""

import dataclasses

import pytest
import torch

from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.samplers.solvers.euler import Euler
from tests.samplers.caches.toy import random_dit

STEPS, ROWS, DEPTH = 12, 5, 4
TIMES = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
GATED = {
    "fbcache": {"threshold": 0.03},
    "teacache": {"threshold": 0.1},
    "speca": {"threshold": 0.0001, "decay": 1.0, "floor": 0.0},
    "cg_taylor": {"threshold": 0.002},
}


class Counted:
    """A denoiser whose rows differ, the cache's report, and how many rows the last block but one computed."""

    def __init__(self, name, fixed_batch=False, **fields):
        self.net = random_dit(torch.float64, depth=DEPTH)
        self.net.fixed_batch = fixed_batch
        self.cache, self.rows = build("samplers.caches", {"name": name, **GATED[name], **fields}), 0
        self.net.blocks[-2].attn.register_forward_pre_hook(self.count)
        noise = Noise(tuple(sample_seeds(0, ROWS)))
        sizes = torch.linspace(0.2, 3, ROWS, dtype=torch.float64).view(-1, 1, 1, 1)
        self.x, self.y = noise.normal("start", (1, 8, 8)).double() * sizes, noise.integers("y", 3)

    def count(self, module, args):
        self.rows += len(args[0])

    def loop(self, rows=slice(None), guide=None):
        f, self.session = Denoiser(self.net, Flow(), Velocity()), self.cache.start(STEPS)
        f = f if guide is None else build("samplers.guides", guide)(f, TIMES)
        return integrate(f, self.x[rows], TIMES, Euler(), cond={"y": self.y[rows]}, tap=self.session)


@pytest.mark.parametrize(
    ("name", "guide"), [*((name, None) for name in GATED), ("speca", {"name": "cfg", "scale": 2.0})]
)
def test_rows_that_ask_are_computed_apart_and_are_what_they_are_alone(name, guide):
    apart, whole = Counted(name), Counted(name, fixed_batch=True)
    x = apart.loop(guide=guide)
    torch.testing.assert_close(x, whole.loop(guide=guide), rtol=1e-11, atol=1e-11)
    report, evaluations = apart.session.report(), STEPS * (2 if guide else 1)
    assert report.json() == whole.session.report().json()
    asked = round(report.fraction_per_row * ROWS * evaluations)
    assert 0 < report.fraction_per_row < 0.8 * report.fraction
    assert asked <= apart.rows <= asked + 3 * ROWS  # where most ask, all are computed
    assert apart.rows < 0.9 * whole.rows
    alone = torch.cat([Counted(name).loop(slice(i, i + 1), guide) for i in (0, ROWS - 1)])
    torch.testing.assert_close(x[[0, -1]], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", GATED)
def test_one_decision_for_the_batch_is_an_option(name):
    counted = Counted(name, per_batch=True)
    counted.loop()
    shares = counted.session.report().share_needed
    assert set(shares) == {0.0, 1.0}
    assert counted.rows == ROWS * sum(shares)
    spec = dataclasses.replace(counted.cache, threshold=0.0)
    counted.cache = spec
    counted.loop()
    assert set(counted.session.report().share_needed) == {1.0}
