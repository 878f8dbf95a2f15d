"""SinSR: nothing is left to learn for a student that knows the teacher's map and its inverse; where gradients go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import Shift
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.distillers.sinsr import SinSR
from gen.samplers.solvers.euler import Euler
from gen.training.objectives import Batch

PATH = Shift()
WORLD = Gaussian(PATH, torch.tensor([0.3]).double(), torch.tensor([0.5]).double())
GRID = torch.arange(15, -1, -1, dtype=torch.float64)


class Affine(nn.Module):
    """At t1 it says a x + b as x0, at the first entry the noise of that."""

    base_picture = None

    def __init__(self, a, b):
        super().__init__()
        self.there = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))
        self.back = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        if float(t[0]) == 14:
            return self.there[0] * x + self.there[1]
        assert float(t[0]) == 0
        return (x - self.back[1]) / self.back[0] / PATH.sigma(GRID[0])


def teacher_s_map():
    zero, one = (integrate(WORLD, torch.tensor([[v]]).double(), GRID, Euler()) for v in (0.0, 1.0))
    return float(one - zero), float(zero)


def batch(n=64):
    noise = training_noise(0, 0, range(n))
    return Batch(WORLD.sample(noise.normal("data", (1,)).double()), {}, noise)


def run(net, **weights):
    roles = {"net": Denoiser(net, PATH, X0()), "teacher": WORLD}
    ((_, loss, logs),) = SinSR(**weights)(roles, batch())
    return loss, logs


def test_the_teacher_s_own_map_and_its_inverse_leave_no_loss():
    a, b = teacher_s_map()
    loss, logs = run(Affine(a, b))
    assert float(loss.detach()) < 1e-20 and logs.keys() == {"knowledge", "inverse", "truth"}
    loss, logs = run(Affine(a, b + 0.1))
    start = PATH.sigma(GRID[0]) * batch().normal("start")
    assert float(logs["knowledge"]) == pytest.approx(0.01) and float(logs["truth"]) < 1e-20
    assert float(logs["inverse"]) == pytest.approx((0.1 / a) ** 2)
    loss, _ = run(Affine(2 * a, b), inverse=0.0, truth=0.5)  # its truth is right again
    torch.testing.assert_close(loss.detach(), (a * start).square().mean())


def test_the_truth_reaches_the_forward_map_alone():
    net = Affine(0.3, 0.1)
    loss, _ = run(net, inverse=0.0, truth=1.0)
    loss.backward()
    assert net.back.grad is None and net.there.grad.abs().min() > 0
    net.zero_grad()
    run(net, truth=0.0)[0].backward()
    assert net.back.grad.abs().min() > 0
