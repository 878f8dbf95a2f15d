"""Straight: its heuristics by their closed forms on linear equations, and what they add to an objective."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, Velocity
from gen.diffusion.path import EDM, Flow
from gen.diffusion.worlds import Gaussian
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.straight import Straight, eigenvalue, embedded_gap
from tests.over import over


@over(a=[-1.0, -5.0, 0.7, -10.0])
def test_the_pair_s_gap_and_the_eigenvalue_of_a_linear_equation(a):
    """y' = a y: |y| |z|^3 |1 + z| / 48 with z = a h, which is 0 at z = -1 by chance, and |a|."""
    y, phi, h = torch.tensor([[1.0], [-2.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64), 0.1

    def slope(y, phi):
        return a * y

    z = a * h
    gap = embedded_gap(slope, y, phi, h, slope(y, phi))
    torch.testing.assert_close(gap.abs(), y.abs() * abs(z) ** 3 * abs(1 + z) / 48, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(eigenvalue(slope, y, phi, h, slope(y, phi)).double(), 0 * phi + abs(a))


def test_the_summed_error_of_a_trajectory_is_the_published_one():
    """Sum of |gap| h over [0, 1] from y = 1 along the third-order solution."""
    for a, n, expected in ((-1.0, 20, 1.603258e-6), (-1.0, 100, 1.310278e-8), (-5.0, 100, 5.038440e-7)):
        h, y, phi, total = 1 / n, torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.0
        for _ in range(n):
            total += h * float(embedded_gap(lambda y, phi, a=a: a * y, y, phi, h, a * y).abs())
            z = a * h
            y = y * (1 + z + z**2 / 2 + z**3 / 6)
        assert total == pytest.approx(expected, rel=1e-6)


class Exact(nn.Module):
    """The velocity or x0 of a Gaussian world, with an error that bends it."""

    def __init__(self, world, param, bend=0.0):
        super().__init__()
        self.world, self.param, self.bend = world, param, nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        t = t if isinstance(self.world.path, Flow) else (4 * t).exp()
        return self.param.target(self.world.path, *self.world(x, t), t) + self.bend * torch.sin(3 * x)

    def null(self, cond):
        return cond


def batch(n=64):
    noise = training_noise(0, 0, range(n))
    return Batch(noise.normal("data", (2,)).double(), {}, noise)


def world(path, std=1.0):
    return Gaussian(path, torch.zeros(2).double(), torch.full((2,), std).double())


def test_without_weights_it_is_the_inner_objective_to_the_bit():
    f = {"net": Denoiser(Exact(world(Flow()), Velocity(), 0.1), Flow(), Velocity())}
    inner = Denoising(class_dropout=0.0)
    for part in ("__call__", "validate"):
        found = [getattr(o, part)(f, batch()) for o in (inner, Straight(inner, error=0.0))]
        found = [next(one)[1] if part == "__call__" else one for one in found]
        assert torch.equal(*found)
    with pytest.raises(UserError, match="straight already"):
        Straight(Straight())


@over(path=[Flow(), EDM()])
def test_a_straight_flow_costs_nothing_and_a_bent_one_by_its_gradient(path):
    """Unit variance: y stands still in the angle. The slope of the cost in the error agrees with differences."""
    param = Velocity() if path == Flow() else X0()
    objective = Straight(error=1.0, stiffness=0.1)

    def costs(bend):
        net = Exact(world(path), param, bend)
        return net, objective.costs(Denoiser(net, path, param), batch())

    assert float(costs(0.0)[1]["gap"].detach()) < 1e-8
    net, found = costs(0.2)
    (slope,) = torch.autograd.grad(found["gap"], net.bend)
    high, low = (float(costs(0.2 + d)[1]["gap"].detach()) for d in (1e-3, -1e-3))
    assert float(found["gap"].detach()) > 1e-4
    assert float(slope) == pytest.approx((high - low) / 2e-3, rel=1e-3)
    ((role, loss, logs),) = objective({"net": Denoiser(net, path, param)}, batch())
    assert role == "net" and logs.keys() == {"inner", "gap", "eigenvalue"}
    torch.testing.assert_close(loss, logs["inner"] + logs["gap"] + 0.1 * logs["eigenvalue"])
