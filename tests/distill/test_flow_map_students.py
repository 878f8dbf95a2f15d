"""Students of sCM, MeanFlow and Shortcut on the line: where their updates come to rest, they are the quantile map.

Nothing is drawn: a teacher answers anywhere, so a batch is a grid of inputs and times, and its data and noise are
alike, that x_t be the input. The students are linear in their weights, so that the rest is solved for, not awaited.
"""

import math

import pytest
import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import V, Velocity
from gen.diffusion.path import Flow, Trig
from gen.diffusion.times import Uniform
from gen.distillers.meanflow import MeanFlow
from gen.distillers.scm import SCM
from gen.distillers.shortcut import Shortcut
from gen.samplers.solvers.jump import Jump
from gen.samplers.solvers.renoise import Renoise
from gen.training.objectives import Batch
from tests.distill.line import Taught, miss, world
from tests.distill.toys import Quick

F64 = torch.float64
BINS, REACH = 60, 4.2


def bumps(x):
    """Cubic B-splines at even places of the line, [B, BINS]."""
    away = (x.reshape(-1, 1) - torch.linspace(-REACH, REACH, BINS, dtype=F64)).abs() * (BINS - 1) / (2 * REACH)
    return ((2 - away).clamp(min=0) ** 3 - 4 * (1 - away).clamp(min=0) ** 3) / 6


class Smooth(nn.Module):
    """Splines in x times polynomials in t, for one target time."""

    def __init__(self, t1, degree=6):
        super().__init__()
        self.t1, self.powers = t1, torch.arange(degree + 1)
        self.weight = nn.Parameter(torch.zeros(BINS * (degree + 1), dtype=F64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        of_t = torch.special.chebyshev_polynomial_t(2 * t[:, None] / self.t1 - 1, self.powers)
        return ((bumps(x) @ self.weight.reshape(BINS, -1)) * of_t).sum(1).reshape(x.shape)


class Halves(nn.Module):
    """A network for jumps to 0 and one for jumps to 1/2."""

    def __init__(self, nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.nets[round(2 * float(s[0]))](x, t, cond)


class Jumps(nn.Module):
    """Splines in x for each jump of 1, 1/2, 1/4, ... on the grid of its length."""

    def __init__(self, steps):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * steps, BINS, dtype=F64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        parts = (1 / (t - s)).round()
        jump = (parts - 1 + s * parts).round().long()
        return (bumps(x) * self.weight[jump]).sum(1).reshape(x.shape)


def even(path, name, places, **drawn):
    """A batch of every place in [0, 1], the draws of that name, with every input in [-4, 4]; other draws are fixed."""
    u, x = torch.cartesian_prod(places, torch.linspace(-4, 4, 140, dtype=F64)).T
    x = (x / (path.alpha(u * path.t1) + path.sigma(u * path.t1)))[:, None, None, None]
    noise = Quick(len(u), 0)
    noise.drawn = {"eps": x, name: u} | {other: torch.full_like(u, value) for other, value in drawn.items()}
    return Batch(x, {}, noise)


def between(low, n=16):
    """Times from low to 1, denser at the ends, as polynomials need them."""
    angle = math.pi * (torch.arange(n, dtype=F64) + 0.5) / n
    return low + (1 - low) * (1 - angle.cos()) / 2


class Kept(Taught):
    """A teacher that is asked the same again and again."""

    def __init__(self, world):
        super().__init__(world)
        self.kept = {}

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        key = float(x.abs().sum()), float(t.sum())
        if key not in self.kept:
            self.kept[key] = super().__call__(x, t)
        return self.kept[key]


def rest(method, f, mixture, batch, rtol):
    """The student whose update on the batch is 0; updates are affine in its weights."""
    roles, weight = {"net": f, "teacher": Kept(mixture)}, f.net.weight

    def update(w):
        with torch.no_grad():
            weight.copy_(w)
        return torch.autograd.grad(next(method(roles, batch))[1], weight)[0]

    first = update(torch.zeros(len(weight), dtype=F64))
    slope = torch.stack([update(w) - first for w in torch.eye(len(weight), dtype=F64)], 1)
    with torch.no_grad():
        weight.copy_(-torch.linalg.pinv(slope, rtol=rtol) @ first)
    return f


@pytest.mark.slow
@pytest.mark.parametrize(("path", "param"), [(Trig(), V()), (Flow(), Velocity())], ids=["trig", "flow"])
def test_scm(path, param):
    method = SCM(times=Uniform(), warmup=0, damping=1e6, adaptive=False, derivative="difference")
    batch = even(path, "t", between(0.0))
    f = rest(method, Denoiser(Smooth(path.t1), path, param), world(path), batch, 1e-9)
    assert miss(f, world(path), Renoise(), [path.t1, 0.0]) < 1e-2


@pytest.mark.slow
def test_meanflow():
    """A target time's average velocity is taught by itself alone, so that each has a student of its own."""
    method = MeanFlow(times=Uniform(), flow_share=0.0, velocity="teacher", power=0.0, derivative="difference")

    def net(s):
        batch = even(Flow(), "t", between(s), s=s)
        return rest(method, Denoiser(Smooth(1.0), Flow(), Velocity()), world(), batch, 1e-7).net

    f = Denoiser(Halves([net(0.0), net(0.5)]), Flow(), Velocity())
    assert miss(f, world(), Jump(), [1.0, 0.0]) < 1e-2
    assert miss(f, world(), Jump(), [1.0, 0.5, 0.0]) < 1e-2


@pytest.mark.slow
def test_shortcut():
    """From the shortest jumps to the longest. 256 of them: 64 steps of Euler's would be 1.5 % off themselves."""
    levels, mixture = 8, world()
    method = Shortcut(steps=2**levels, bootstrap=0.5, ema_decay=0.0, velocity="teacher", clip=None)
    nets = method.roles(Jumps(method.steps), Taught(mixture))
    roles = {name: Denoiser(net, Flow(), Velocity()) for name, net in nets.items()} | {"teacher": Kept(mixture)}
    for level in reversed(range(levels + 1)):
        places = (torch.arange(2**level, dtype=F64) + 0.5) / 2**level
        shortest = float(level == levels)  # 1 is never below `bootstrap`, and then no other level is drawn
        batch = even(Flow(), "place", places, bootstrap=shortest, level=(level + 0.5) / levels)
        optim = torch.optim.LBFGS(nets["net"].parameters(), max_iter=30, line_search_fn="strong_wolfe")

        def closure(optim=optim, batch=batch, scale=2**level):
            optim.zero_grad()
            loss = scale * next(method(roles, batch))[1]
            loss.backward()
            return loss

        optim.step(closure)
        method.observe(roles, {})
    f = roles["net"]
    assert miss(f, mixture, Jump(), [1.0, 0.0]) < 1e-2
    assert miss(f, mixture, Jump(), [1.0, 0.5, 0.0]) < 1e-2
