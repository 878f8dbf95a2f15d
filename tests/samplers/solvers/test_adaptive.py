"""Adaptive steps: as exact as asked, and honest about what that took."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import NonFinite, UserError
from gen.diffusion.denoiser import CountingDenoiser, Denoiser
from gen.diffusion.parameterisation import Eps, Score
from gen.diffusion.path import DDPM, EDM, VP, Flow, Prediction, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.adaptive import AdaptiveSteps
from tests.samplers.solvers.worlds import f64, mixture


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(), Trig(), DDPM()], ids=repr)
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_a_smaller_tolerance_is_a_smaller_error_at_more_evaluations(path, per):
    world, x = Gaussian(path, f64(1.0, -2.0), f64(0.3, 1.5)), torch.randn(6, 2, dtype=torch.float64)
    start, grid = f64(0.9 * path.t1)[0], f64(0.9, 0.02) * path.t1
    exact, errors, calls = world.flow(x, start, grid[-1]), [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        counted = CountingDenoiser(world)
        out = integrate(counted, x, grid, AdaptiveSteps(rtol=tolerance, atol=tolerance, per=per))
        errors.append(float((out - exact).abs().max()))
        calls.append(counted.calls)
    assert calls[0] < calls[1] < calls[2]
    assert all(error < 100 * tol for error, tol in zip(errors, (1e-3, 1e-5, 1e-7), strict=True)), errors


def test_times_of_the_grid_are_met():
    world, x = Gaussian(Flow(), f64(1.0), f64(0.3)), torch.randn(6, 1, dtype=torch.float64)
    seen, grid = [], f64(1.0, 0.6, 0.2, 0.0)
    integrate(world, x, grid, AdaptiveSteps(1e-6, 1e-6), watch=lambda i, t, x: seen.append(x))
    for t, at in zip(grid[1:3], seen, strict=False):
        torch.testing.assert_close(at, world.flow(x, grid[0], t), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[-1], world.sample(x), rtol=0, atol=1e-2)


def test_a_sample_has_its_own_steps_or_the_batch_has_the_worst_one_s():
    x = torch.tensor([[0.1, 0.0], [3.0, -2.0]], dtype=torch.float64)
    f, alone = mixture(Flow()), []
    for per, same in (("sample", True), ("batch", False)):
        solver = AdaptiveSteps(1e-2, 1e-2, per=per)
        together, alone = integrate(f, x, [1.0, 0.0], solver), integrate(f, x[:1], [1.0, 0.0], solver)
        assert torch.allclose(together[:1], alone, rtol=1e-12, atol=1e-12) is same


def test_no_tolerance_saves_a_network_of_nans():
    class Broken:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            return Prediction(x * torch.nan, x)

    with pytest.raises(NonFinite):
        integrate(Broken(), torch.zeros(1, 1, dtype=torch.float64), [1.0, 0.0], AdaptiveSteps())


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize(("path", "param"), [(Flow(), Eps()), (Flow(), Score()), (Trig(), Eps())], ids=repr)
def test_a_prediction_that_says_nothing_of_x0_is_refused_as_by_other_solvers(path, param, per):
    f = Denoiser(lambda x, t, cond, *, s=None, tap=None: x / 2, path, param)
    with pytest.raises(UserError, match="does not determine x0 at t = "):
        integrate(f, torch.zeros(2, 1, dtype=torch.float64), [path.t1, 0.0], AdaptiveSteps(per=per))


def test_wrong_tolerances_are_refused():
    with pytest.raises(UserError, match=r"atol = 0\.0; it must be in \(0, inf\)"):
        AdaptiveSteps(atol=0)
