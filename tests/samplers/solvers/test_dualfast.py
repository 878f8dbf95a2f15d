"""DualFast in a world whose denoiser errs by a known amount."""

from __future__ import annotations

import pytest
import torch

from gen.config.spec import build, spec_of
from gen.diffusion.path import Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.dualfast import DualFast
from tests.samplers.solvers.worlds import f64

WORLD = Gaussian(Flow(), f64(1.0, -2.0), f64(0.3, 1.5))
X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Erring:
    """The exact world, with eps moved by `error` t: the same way at every t, by more at higher noise."""

    path = Flow()

    def __init__(self, error):
        self.error = error

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        eps = WORLD(x, t).eps + self.error * t
        return Prediction((x - t * eps) / (1 - t), eps)


def rmse(solver, error, steps):
    grid = torch.linspace(0.9, 0.02, steps + 1, dtype=torch.float64)
    out = integrate(Erring(error), X, grid, solver)
    return float((out - WORLD.flow(X, grid[0], grid[-1])).pow(2).mean().sqrt())


@pytest.mark.parametrize("inner", ["ddim", "dpmpp", "unipc", "deis"])
def test_without_a_factor_it_is_the_inner_solver(inner):
    grid = torch.linspace(1, 0, 9, dtype=torch.float64)
    own = build("samplers.solvers", inner)
    ours, plain = (integrate(WORLD, X, grid, solver) for solver in (DualFast(own, c=0.0), own))
    assert torch.equal(ours, plain)
    assert DualFast(own, c=0.0).order == own.order


def test_it_helps_a_denoiser_that_errs_more_at_high_noise():
    plain, dual = build("samplers.solvers", "ddim"), DualFast(c=0.5)
    for steps in (5, 10, 20):
        assert rmse(dual, 0.3, steps) < rmse(plain, 0.3, steps)


def test_it_costs_an_exact_denoiser_the_order_of_its_solver():
    inner = build("samplers.solvers", "dpmpp")
    assert rmse(DualFast(inner, c=0.5), 0.0, 64) > 5 * rmse(inner, 0.0, 64)


def test_its_inner_solver_is_a_part_of_its_spec():
    spec = spec_of(build("samplers.solvers", "dualfast", solver={"name": "unipc", "solver_order": 3}))
    assert spec["solver"]["name"] == "unipc"
    assert build("samplers.solvers", spec).solver.solver_order == 3


def test_its_solver_may_be_a_name():
    assert DualFast(solver="dpmpp") == DualFast(solver=build("samplers.solvers", "dpmpp"))
