"""The sampling loop."""

from __future__ import annotations

import math

import pytest
import torch

from gen.config.errors import NonFinite, UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import EDM, Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.renoise import Renoise


def world(path=None):
    return Gaussian(path or Flow(), torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.5]).double())


def start(n=3):
    return Noise(tuple(range(n))).normal("start", (2,)).double()


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ([1.0], "at least 2 falling times"),
        ([], "at least 2 falling times"),
        ([0.5, 0.5, 0.0], "at least 2 falling times"),
        ([0.0, 1.0], "at least 2 falling times"),
        ([1.0, math.nan], "at least 2 falling times"),
        ([[1.0, 0.0]], "at least 2 falling times"),
        ([1.5, 0.0], r"lies in \[0, 1\]"),
        ([0.5, -0.1], r"lies in \[0, 1\]"),
    ],
)
def test_bad_grids_are_refused(grid, why):
    with pytest.raises(UserError, match=why) as error:
        integrate(world(), start(), torch.tensor(grid), Euler())
    assert "\n" not in str(error.value)


def test_the_bound_of_a_grid_is_the_paths():
    assert integrate(world(EDM()), 80 * start(), [80.0, 1.0, 0.0], Euler()).shape == (3, 2)
    with pytest.raises(UserError, match=r"\[0, 80\], got 81"):
        integrate(world(EDM()), start(), [81.0, 0.0], Euler())


def test_nan_is_named():
    class Broken:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            return Prediction(x * math.nan, x)

    with pytest.raises(NonFinite, match="Euler produced NaN or inf in 2 steps from 1"):
        integrate(Broken(), start(), [1.0, 0.5, 0.0], Euler())


def test_a_stochastic_solver_asks_for_its_noise():
    with pytest.raises(UserError, match="Renoise draws noise"):
        integrate(world(), start(), [1.0, 0.5, 0.0], Renoise())


def test_noise_of_a_step_is_named_by_the_step():
    """So a run that starts at step 1 could be given the same noise; and no two steps share one."""
    noise, seen = Noise((1, 2, 3)), []

    class Watcher(Euler):
        def step(self, f, path, x, t, s, state, noise):
            seen.append(noise())
            return super().step(f, path, x, t, s, state, noise)

    integrate(world(), start(), [1.0, 0.5, 0.0], Watcher(), noise=noise)
    assert torch.equal(seen[0], noise.normal(0, (2,)).double())
    assert torch.equal(seen[1], noise.normal(1, (2,)).double())


def test_watch_sees_every_step():
    seen = []
    x = integrate(world(), start(), [1.0, 0.6, 0.3, 0.0], Heun(), watch=lambda i, t, x: seen.append((i, float(t), x)))
    assert [(i, t) for i, t, _ in seen] == [(0, 0.6), (1, 0.3), (2, 0.0)]
    assert torch.equal(seen[-1][2], x)


def test_the_condition_and_the_tap_reach_the_network():
    cond, tap, calls = {"y": torch.tensor([1, 2, 3])}, object(), []

    class Spy:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            calls.append((cond, s, tap, t))
            return Prediction(x, x)

    integrate(Spy(), start(), [1.0, 0.0], Euler(), cond=cond, tap=tap)
    assert calls[0][0] is cond
    assert calls[0][1] is None
    assert calls[0][2] is tap
    assert calls[0][3].dtype == torch.float64
    assert calls[0][3].ndim == 0


class Identity(torch.nn.Module):
    def forward(self, x, t, cond, *, s=None, tap=None):
        assert t.shape == (len(x),)
        return x

    def null(self, cond):
        return cond


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_computes_in_the_dtype_of_x(dtype):
    denoiser = Denoiser(Identity(), Flow(), Velocity())
    assert integrate(denoiser, start().to(dtype), [1.0, 0.5, 0.0], Heun()).dtype == dtype


def test_x_is_not_written_to():
    x = start()
    kept = x.clone()
    integrate(world(), x, [1.0, 0.5, 0.0], Heun())
    assert torch.equal(x, kept)


def test_gradients_flow_through_the_loop():
    x = start().requires_grad_()
    integrate(world(), x, [1.0, 0.5, 0.0], Euler()).sum().backward()
    assert bool((x.grad != 0).all())
