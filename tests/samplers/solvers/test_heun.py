"""Heun against Algorithm 1 of EDM, written out."""

from __future__ import annotations

import itertools

import torch

from gen.diffusion.path import EDM, Prediction
from gen.diffusion.sampling import integrate
from gen.samplers.grids.karras import Karras
from gen.samplers.solvers.heun import Heun


class Shrink:
    """The denoiser D(x; sigma) = tanh(x) / (1 + sigma^2)."""

    path = EDM()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = torch.tanh(x) / (1 + t**2)
        return Prediction(x0, (x - x0) / t)


def test_it_is_algorithm_1_of_edm():
    f = Shrink()
    grid = Karras().times(f.path, 8)
    x = start = 80 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for t, s in itertools.pairwise(grid):
        d = (x - f(x, t).x0) / t
        euler = x + (s - t) * d
        x = euler if s == 0 else x + (s - t) * (d + (euler - f(euler, s).x0) / s) / 2
    torch.testing.assert_close(integrate(f, start, grid, Heun()), x, rtol=1e-11, atol=1e-11)
