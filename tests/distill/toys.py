"""What tests of distillation share: noise that is quick, a network that is exact, and a fit of seconds."""

from __future__ import annotations

import torch
from torch import nn

from gen.diffusion.path import expand
from gen.diffusion.worlds import Gaussian
from gen.training.objectives import Batch


class Quick:
    """A Noise of one generator for all samples: what matters to a fit is that it is fast."""

    def __init__(self, n, seed):
        self.n, self.generator = n, torch.Generator().manual_seed(seed)
        self.drawn = {}

    def normal(self, name, shape):
        return self._draw(name, lambda: torch.randn(self.n, *shape, generator=self.generator, dtype=torch.float64))

    def uniform(self, name):
        return self._draw(name, lambda: torch.rand(self.n, generator=self.generator, dtype=torch.float64))

    def integers(self, name, high):
        return (self.uniform(name) * high).long()

    def _draw(self, name, make):
        if name not in self.drawn:
            self.drawn[name] = make()
        return self.drawn[name]


class Exact(nn.Module):
    """A network of no weights, but a zero, whose x0 is what `world.flow` ends in: the exact consistency function."""

    def __init__(self, world, param):
        super().__init__()
        self.world, self.parameterisation = world, param
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        path = self.world.path
        t = (4 * t).exp() if type(path).__name__ == "EDM" else t  # what the network is told, undone
        x = x / expand(self.parameterisation.scale(path, t), x)
        x0 = self.world.flow(x, t, torch.zeros_like(t[:1]))
        b, det = self.parameterisation.coefficients(path, t)[1], self.parameterisation.det(path, t)
        return (expand(b, x) * x - expand(det, x) * x0) / expand(path.sigma(t), x) + self.zero


class Table(nn.Module):
    """A table of outputs at even inputs in [-5, 5] and at given times, linear between them: enough for any map on a
    line. begin: a world whose prediction it says at first, as a network trained to denoise would."""

    def __init__(self, path, param, times, begin, points=160):
        super().__init__()
        times = times.sort().values
        self.told, self.points = path.t_to_network(times), points
        t, x = torch.cartesian_prod(times, torch.linspace(-5, 5, points + 1, dtype=torch.float64)).T
        pred = begin(x[:, None] / param.scale(path, t)[:, None], t)
        self.values = nn.Parameter(param.target(path, *pred, t).reshape(len(times), points + 1))

    def forward(self, x, t, cond, *, s=None, tap=None):
        i = (torch.searchsorted(self.told, t) - 1).clamp(0, len(self.told) - 2)
        v = ((t - self.told[i]) / (self.told[i + 1] - self.told[i])).clamp(0, 1)
        column = (x[:, 0] + 5) / 10 * self.points
        j = column.long().clamp(0, self.points - 1)
        w, k, flat = column - j, i * (self.points + 1) + j, self.values.reshape(-1)
        low = torch.lerp(flat[k], flat[k + 1], w)
        high = torch.lerp(flat[k + self.points + 1], flat[k + self.points + 2], w)
        return torch.lerp(low, high, v)[:, None]

    def null(self, cond):
        return cond


def batches(world, n, steps, seed=0):
    """Batches of n points of a world on the line, one for each step."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if isinstance(world, Gaussian):
            x = world.sample(torch.randn(n, len(world.mean), generator=generator, dtype=torch.float64))
        else:
            x = world.sample(n, generator)[0]
        yield Batch(x, {}, Quick(n, 1000 * seed + step + 1), None, step)


def solve(method, roles, count):
    """Consistency distillation by least squares, interval after interval from the data on, each with its target made.

    A teacher answers anywhere, so the points are even and wide, and none is drawn.
    """
    net, u = roles["net"].net, torch.linspace(-4.5, 4.5, 800, dtype=torch.float64)[:, None]
    for i in reversed(range(count)):
        noise = Quick(len(u), 0)
        noise.drawn |= {"eps": u, "interval": torch.full((len(u),), (i + 0.5) / count, dtype=torch.float64)}
        optim = torch.optim.LBFGS(net.parameters(), max_iter=30, line_search_fn="strong_wolfe")

        def closure(optim=optim, noise=noise):
            optim.zero_grad()
            loss = next(method(roles, Batch(u, {}, noise)))[1]
            loss.backward()
            return loss

        optim.step(closure)
        method.observe(roles, {"target_decay": 0.0})


def fit(objective, roles, world, steps, n=512, lr=0.05, seed=0):
    """Adam with a rate that falls to 0, as the trainer would; the logs of the last step."""
    optim = torch.optim.Adam(roles["net"].net.parameters(), lr, betas=(0.9, 0.99), eps=1e-16)
    for batch in batches(world, n, steps, seed):
        optim.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - batch.step / steps))
        for _, loss, logs in objective(roles, batch):
            optim.zero_grad()
            loss.backward()
            optim.step()
            told = {k: float(v) for k, v in logs.items()}
        if hasattr(objective, "observe"):
            objective.observe(roles, told)
    return told


def quantile_error(f, world, t, n=1001):
    """How far f's x0 is from the exact map at time t, relative in L2 over the distribution of x_t on the line."""
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    one, nil = (torch.full((1,), float(value), dtype=torch.float64) for value in (t, 0.0))
    noise = torch.full((1,), world.path.t1, dtype=torch.float64)
    exact = world.flow(z * world.path.sigma(noise), noise, nil)  # quantiles of the data
    x = world.flow(exact, nil, one)
    with torch.no_grad():
        return float((f(x, one.expand(n)).x0 - exact).norm() / exact.norm())
