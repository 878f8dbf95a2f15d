"""DPM-Solver++(2M) against its published update, written out."""

from __future__ import annotations

import itertools

import pytest
import torch

from gen.diffusion.path import DDPM, EDM, VP, Flow, Prediction, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.dpmpp import DPMpp
from gen.samplers.solvers.euler import Euler


class Curved:
    def __init__(self, path):
        self.path = path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = torch.tanh(x) * torch.cos(t / self.path.t1)
        return Prediction(x0, (x - self.path.alpha(t) * x0) / self.path.sigma(t))


@pytest.mark.parametrize("path", [VP(), Flow(), Trig(), EDM(), DDPM()], ids=repr)
def test_it_is_algorithm_2_of_its_paper(path):
    """D = (1 + 1 / 2r) x0_i - 1 / 2r x0_(i-1), r = h_(i-1) / h_i; x = sigma_s / sigma_t x - alpha_s (e^-h - 1) D."""
    f = Curved(path)
    grid = torch.tensor([0.9, 0.75, 0.5, 0.3, 0.12], dtype=torch.float64) * path.t1
    x = start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    previous, h_previous = None, None
    for t, s in itertools.pairwise(grid):
        h, x0 = path.lam(s) - path.lam(t), f(x, t).x0
        guess = x0
        if previous is not None:
            r = h_previous / h
            guess = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = path.sigma(s) / path.sigma(t) * x - path.alpha(s) * torch.expm1(-h) * guess
        previous, h_previous = x0, h
    torch.testing.assert_close(integrate(f, start, grid, DPMpp()), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", [VP(), Flow(), Trig(), EDM()], ids=repr)
def test_one_step_is_one_of_euler(path):
    f, x = Curved(path), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = [0.8 * path.t1, 0.3 * path.t1]
    torch.testing.assert_close(integrate(f, x, grid, DPMpp()), integrate(f, x, grid, Euler()), rtol=1e-12, atol=1e-12)


def test_it_starts_from_infinite_noise_and_ends_at_none():
    """At t = 1 of the flow path alpha = 0 and the log-SNR is -inf; at t = 0 it is +inf: both steps are first order."""
    world = Gaussian(Flow(), torch.tensor([3.0]).double(), torch.tensor([0.6]).double())
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    errors = []
    for steps in (8, 64):
        out = integrate(world, x, torch.linspace(1, 0, steps + 1, dtype=torch.float64), DPMpp())
        errors.append(float((out - world.sample(x)).abs().max()))
    assert errors[1] < errors[0] / 6
