"""One-dimensional Gaussian students and critics, whose every expectation is a sum over a grid."""

import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, derive
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import EDM
from gen.diffusion.worlds import Gaussian

START = 2.0
PATH = EDM(START)


class Affine(nn.Module):
    """x0 = mean + std z, z the noise that a walk of the path starts from: a one-step student N(mean, std^2)."""

    def __init__(self, mean, std, start=START):
        super().__init__()
        self.mean, self.std = (nn.Parameter(f64(v)) for v in (mean, std))
        self.start = start

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.mean + self.std * x / self.start


def student(mean, std):
    return Denoiser(Affine(mean, std), PATH, X0())


def f64(value):
    return torch.tensor([float(value.detach() if torch.is_tensor(value) else value)], dtype=torch.float64)


def world(mean, std):
    return Gaussian(PATH, f64(mean), f64(std))


def nodes(n=301, reach=8.0):
    """z, eps [n^2, 1] and their weights [n^2]: the trapezoid rule of E over two unit normals, exact to rounding."""
    axis = torch.linspace(-reach, reach, n, dtype=torch.float64)
    weight = (-(axis**2) / 2).exp()
    z, eps = torch.meshgrid(axis, axis, indexing="ij")
    w = torch.outer(weight, weight).flatten()
    return z.reshape(-1, 1), eps.reshape(-1, 1), w / w.sum()


def at_nodes(f, level):
    """A student's samples at the nodes, their noise and times: (y, eps, t, weights)."""
    z, eps, w = nodes()
    t = torch.full((len(z),), level, dtype=torch.float64)
    return f(START * z, torch.full_like(t, START), {}).x0, eps, t, w


class Paired(Noise):
    """Noise whose second half is the first's negative: means of what is odd in it are exact."""

    def normal(self, name, shape):
        half = super().normal(name, shape)[: len(self.seeds) // 2]
        return torch.cat([half, -half])


class Quick(Noise):
    """Noise from one generator for the whole batch: a fit of thousands of draws in seconds."""

    def _generator(self, name):
        return torch.Generator().manual_seed(derive(self.seeds[0], name))

    def normal(self, name, shape):
        return torch.randn(len(self.seeds), *shape, generator=self._generator(name))

    def uniform(self, name):
        return torch.rand(len(self.seeds), generator=self._generator(name), dtype=torch.float64)


def quick(step, n):
    return Quick((derive("quick", step), *range(n - 1)))


__all__ = ["PATH", "START", "Affine", "Paired", "at_nodes", "f64", "nodes", "quick", "student", "world"]
