"""Euler is DDIM on variance-preserving paths, and plain Euler on flow and EDM."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch

from gen.diffusion.path import DDPM, EDM, Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.samplers.solvers.euler import Euler


class Curved:
    """Some smooth network: x0 = tanh(x) cos(t / t1), eps from it."""

    def __init__(self, path):
        self.path = path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = torch.tanh(x) * torch.cos(t / self.path.t1)
        return Prediction(x0, (x - self.path.alpha(t) * x0) / self.path.sigma(t))


@pytest.mark.parametrize("path", [Flow(), EDM(3.0)], ids=repr)
def test_it_is_x_plus_dt_times_velocity(path):
    f, x = Curved(path), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = torch.linspace(0.9 * path.t1, 0.2, 6, dtype=torch.float64)
    by_hand = x
    for t, s in itertools.pairwise(grid):
        by_hand = by_hand + (s - t) * path.velocity(f(by_hand, t), t)
    torch.testing.assert_close(integrate(f, x, grid, Euler()), by_hand, rtol=1e-12, atol=1e-12)


def test_it_is_the_ddim_of_diffusers():
    scheduler_class = importlib.import_module("diffusers.schedulers.scheduling_ddim").DDIMScheduler
    scheduler = scheduler_class(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    _path, f = DDPM(), Curved(DDPM())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    theirs = x
    for step in scheduler.timesteps:
        eps = f(theirs, (step + 1).double()).eps
        theirs = scheduler.step(eps, step, theirs, eta=0.0).prev_sample
    grid = [float(step) + 1 for step in scheduler.timesteps] + [0.0]
    torch.testing.assert_close(integrate(f, x, grid, Euler()), theirs.double(), rtol=1e-4, atol=1e-4)
