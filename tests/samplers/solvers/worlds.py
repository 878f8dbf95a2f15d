"""What the solvers' tests share: the three-Gaussian world, a log grid, and impulses for exact variances."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.diffusion.path import Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian, Mixture


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(path):
    return Mixture(path, f64([2, 0], [-1, 1.5], [-1, -1.5]), f64(0.3, 0.2, 0.4), f64(0.5, 0.2, 0.3), torch.arange(3))


def log_grid(path, steps, high=80.0, low=0.02):
    """Even in log(sigma / alpha), without a last step to 0."""
    return path.t_from_lambda(
        -torch.linspace(f64(high).log().item(), f64(low).log().item(), steps + 1, dtype=torch.float64)
    )


@dataclass(frozen=True)
class Curved:
    """Some smooth network: x0 = tanh(x) cos(t / t1), eps from it."""

    path: object

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = torch.tanh(x) * torch.cos(t / self.path.t1)
        return Prediction(x0, (x - self.path.alpha(t) * x0) / self.path.sigma(t))


class Impulses:
    """A noise whose row k is 1 at step k and 0 at every other."""

    def __init__(self, rows):
        self.rows = rows

    def normal(self, step, shape):
        out = torch.zeros(self.rows, *shape, dtype=torch.float64)
        out[step] = 1
        return out


def variance(solver, path, std, grid):
    """The exact variance of what a solver makes of data N(0, std^2): every solver is linear in x and its noise.

    The last row carries the start, the others one unit of noise each; their squares add up. No Monte Carlo.
    """
    world, steps = Gaussian(path, f64(0.0), f64(std)), len(grid) - 1
    x = torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[-1] = world.spread(grid[0])
    return float((integrate(world, x, grid, solver, noise=Impulses(steps + 1)) ** 2).sum())
