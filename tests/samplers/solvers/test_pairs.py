"""CFG++ pairs, a guided x0 and an unconditional eps, through every solver."""

from __future__ import annotations

import pytest
import torch

from gen.config.spec import build, names
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import EDM, VP, Flow, Prediction
from gen.diffusion.sampling import integrate
from tests.samplers.solvers.worlds import f64, mixture

ONE_STAGE = ("euler", "ddim", "ancestral", "renoise", "dpmpp", "dpmpp_sde", "unipc", "deis", "dualfast", "flow_sde")
DETERMINISTIC = [
    name
    for name in names("samplers.solvers")
    if name == "adaptive" or build("samplers.solvers", name).order is not None
]


class Pair:
    """The exact world's eps beside an x0 that is moved by `push`."""

    def __init__(self, path, push):
        self.path, self.push = path, push

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        pred = mixture(self.path)(x, t)
        return Prediction(pred.x0 + self.push, pred.eps)


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(8.0)], ids=repr)
@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_step_moves_by_the_guided_x0_and_the_base_eps(name, path):
    """alpha_s (x0 + push) + sigma_s eps: a push of x0 moves x_s by alpha_s push and nothing else."""
    solver = build("samplers.solvers", name)
    x, noise = torch.randn(6, 2, dtype=torch.float64), Noise(tuple(sample_seeds(0, 6)))
    grid = f64(0.7, 0.45) * path.t1
    plain, pushed = (integrate(Pair(path, p), x, grid, solver, noise=noise) for p in (0.0, 0.3))
    torch.testing.assert_close(pushed - plain, (0.3 * path.alpha(grid[1])).expand_as(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(8.0)], ids=repr)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_all_solvers_agree_about_a_pair_in_the_limit_of_one_fine_step(name, path):
    """To first order in the step every deterministic solver makes the same move of a pair."""
    solver = build("samplers.solvers", name)
    x, euler = torch.randn(6, 2, dtype=torch.float64), build("samplers.solvers", "euler")
    gaps = []
    for h in (1e-3, 5e-4):
        grid = f64(0.5, 0.5 - h) * path.t1
        gaps.append(
            float((integrate(Pair(path, 0.3), x, grid, solver) - integrate(Pair(path, 0.3), x, grid, euler)).norm())
        )
    if name in ("euler", "ddim", "dualfast", "dpmpp", "deis", "unipc"):
        assert gaps[0] < 1e-12  # their first step is Euler's
    else:
        assert gaps[1] < gaps[0] * 0.6
        assert gaps[1] < 0.02
