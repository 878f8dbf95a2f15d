"""Mixtures on the line, whose flow map is known: exact students, quick batches, and how far samples are off."""

import math
from dataclasses import dataclass

import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import derive
from gen.diffusion.path import Flow, Prediction, expand
from gen.diffusion.worlds import Mixture, chord
from gen.models.flow_map import FlowMap
from gen.models.mlp import MLP
from gen.training.objectives import Batch


def world(path=None, dtype=torch.float64):
    """Three uneven components of unit deviation together, about."""
    values = [[-1.2], [0.2], [1.1]], [0.35, 0.5, 0.3], [0.3, 0.3, 0.4]
    means, stds, weights = (torch.tensor(v, dtype=dtype) for v in values)
    return Mixture(path or Flow(), means, stds, weights, torch.zeros(3, dtype=torch.int64))


@dataclass(eq=False)
class Exact:
    """The quantile map from t to s (to 0 without s) as a student, with its true derivatives in x and t.

    wrong: a factor on the map's way, for students that are not exact. Where s = t the map's slope, the velocity.
    """

    world: Mixture
    wrong: float = 1.0

    @property
    def path(self):
        return self.world.path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        s, flat = torch.zeros_like(t) if s is None else s, x.reshape(len(x), 1)
        end = self.world.flow(flat, t, s)
        density = self.world.log_prob(end, s).exp()[:, None]
        end = end - (self.world.cdf(end, s) - self.world.cdf(flat, t)) / density  # no change, but for its derivative
        jump = chord(self.path, flat, flat + self.wrong * (end - flat), t, torch.where(s < t, s, torch.zeros_like(s)))
        slope, moving = self.world(flat, t), expand(s < t, flat).bool()
        both = (torch.where(moving, a, b).reshape(x.shape) for a, b in zip(jump, slope, strict=True))
        return Prediction(*both)

    def null(self, cond):
        return {}


@dataclass(frozen=True)
class Quick:
    """A Noise of one generator for all samples: quicker, and spread evenly over its range within a batch."""

    seed: int
    n: int

    def _even(self, name):
        generator = torch.Generator().manual_seed(derive(self.seed, name))
        place = torch.randperm(self.n, generator=generator) + torch.rand(self.n, generator=generator)
        return place.double() / self.n

    def normal(self, name, shape):
        assert math.prod(shape) == 1
        return torch.special.ndtri(self._even(name).clamp(1e-7, 1 - 1e-7)).reshape(-1, *shape)

    def uniform(self, name):
        return self._even(name)

    def integers(self, name, high):
        return (self.uniform(name) * high).long()


def batch(mixture, n=256, seed=0, step=0):
    """Points of the mixture [n, 1, 1, 1], evenly spread, with the noise of a step."""
    noise = Quick(seed, n)
    k = (noise.uniform("component")[:, None] > mixture.weights.cumsum(0)).sum(1).clamp(max=2)
    x = (mixture.means[k] + mixture.stds[k, None] * noise.normal("data", (1,)))[..., None, None]
    return Batch(x, {}, noise, None, step)


def student(path, param, flow_map, width=64, depth=2):
    """A small network of waves of low frequency; it ends in zero. flow_map: of two times, the interval told."""
    spec = MLP(channels=1, width=width, depth=depth, time_scale=1.0)
    torch.manual_seed(0)
    net = FlowMap(spec, tell="interval").build() if flow_map else spec.build()
    return Denoiser(net.double(), path, param)


class Taught:
    """A world on the line as the teacher of pictures [B, 1, 1, 1]."""

    def __init__(self, world):
        self.world, self.path = world, world.path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        pred = self.world(x.flatten(1), t, s=s)
        return Prediction(*(v.reshape(x.shape) for v in pred))


@torch.no_grad()
def miss(f, mixture, solver, grid, n=2000):
    """|samples - quantile map| / |quantile map| of noise that is spread evenly."""
    from gen.diffusion.sampling import integrate

    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    end = mixture.flow(
        z * float(mixture.path.sigma(torch.tensor(grid[0], dtype=torch.float64))),
        *torch.tensor([grid[0], 0.0], dtype=torch.float64),
    )
    start = f.path.start(z[..., None, None], torch.tensor(grid[0], dtype=torch.float64))
    got = integrate(f, start, grid, solver).flatten(1)
    return float((got - end).norm() / end.norm())
