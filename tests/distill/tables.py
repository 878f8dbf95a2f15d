"""Networks that are tables, so that fits are convex and end at the exact student; pairs of exact worlds."""

from dataclasses import dataclass

import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds, training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import EDM, Flow
from gen.diffusion.times import Times
from gen.diffusion.worlds import Gaussian
from gen.training.objectives import Batch
from tests.distill.line import Quick

MEAN, STD = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.6, 0.3, 1.5]).double()


@dataclass(frozen=True)
class Knots(Times):
    """The times of a linear grid of n steps, equally often."""

    n: int = 16

    def at(self, u, path):
        return (u * self.n).floor().add(1) / self.n * path.t1


class Affine(nn.Module):
    """One affine map of each dimension for each time of a linear grid: enough to be exact on a Gaussian."""

    def __init__(self, knots, t1=1.0, dims=3):
        super().__init__()
        self.unit = knots / t1
        self.weight = nn.Parameter(torch.zeros(knots + 1, dims, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(knots + 1, dims, dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        k = (t * self.unit).round().long()
        return self.weight[k] * x + self.bias[k]


class Curve(nn.Module):
    """A piecewise linear function of one number for each time of a linear grid; beyond `reach` it goes on straight."""

    def __init__(self, knots, t1=1.0, bins=97, reach=4.0):
        super().__init__()
        self.unit, self.bins, self.reach = knots / t1, bins, reach
        self.value = nn.Parameter(torch.zeros(knots + 1, bins, dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        k = (t * self.unit).round().long()
        place = (x.reshape(len(x)) / self.reach + 1) / 2 * (self.bins - 1)
        low = place.floor().long().clamp(0, self.bins - 2)
        out = torch.lerp(self.value[k, low], self.value[k, low + 1], place - low)
        return out.reshape(x.shape)


def solve(objective, roles, batch, steps=300):
    """The student at the objective's optimum on this batch; a convex one, if its network is a table."""
    parameters = list(roles["net"].net.parameters())
    optim = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-20, line_search_fn="strong_wolfe"
    )

    def loss():
        optim.zero_grad()
        value = next(objective(roles, batch))[1]
        value.backward()
        return value

    optim.step(loss)
    return roles["net"]


def gaussian(path=None):
    return Gaussian(path or Flow(), MEAN, STD)


def gaussian_pairs(n, path=None, seed=0):
    """Pairs of unit noise and where the ODE of a path leads it."""
    origin = Noise(tuple(sample_seeds(seed, n)))
    return Batch(
        end_of(gaussian(path), origin.normal("start", (3,)).double()), {}, training_noise(0, 0, range(n)), origin
    )


@dataclass(frozen=True)
class Wide(Quick):
    """Noise spread evenly from -4 to 4. Where each point has one right answer, the density of points moves no optimum,
    and this one lets a table settle in its tails too."""

    def normal(self, name, shape):
        return (8 * self.uniform(name) - 4).reshape(-1, *shape)


def mixture_pairs(world, n=4000):
    """The same on the line, x [n, 1], the noise spread wide."""
    origin = Wide(0, n)
    return Batch(end_of(world, origin.normal("start", (1,))), {}, Quick(1, n), origin)


def end_of(world, z):
    """Where the ODE leads a walk that starts at t1 in unit noise z [B, D]."""
    ends = (torch.tensor(t, dtype=torch.float64).expand(len(z)) for t in (world.path.t1, 0.0))
    return world.flow(world.path.start(z, torch.tensor(world.path.t1).double()), *ends)


def spread(n=2000):
    """Unit noise on the line, evenly spread, [n, 1]."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def off(ours, exact):
    """The relative error in L2."""
    return float((ours.detach() - exact).norm() / exact.norm())


class Straight(nn.Module):
    """The exact student on pairs of the Gaussian: x_t tells its z, and every x_t says the same x0 and eps."""

    def __init__(self, path=None, parameterisation=None):
        super().__init__()
        self.path, self.parameterisation = path or Flow(), parameterisation or Velocity()
        self.shift = end_of(gaussian(self.path), torch.zeros(1, 3, dtype=torch.float64))
        self.slope = end_of(gaussian(self.path), torch.ones(1, 3, dtype=torch.float64)) - self.shift

    def forward(self, x, t, cond, *, s=None, tap=None):
        t = (4 * t.double()).exp() if isinstance(self.path, EDM) else t.double()  # what its networks are told
        x = x / self.parameterisation.scale(self.path, t)[:, None]
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        z = (x - alpha * self.shift) / (alpha * self.slope + sigma)
        return self.parameterisation.target(self.path, self.shift + self.slope * z, z, t)

    def denoiser(self):
        return Denoiser(self, self.path, self.parameterisation)
