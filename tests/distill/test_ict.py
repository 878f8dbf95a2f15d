"""iCT: published curriculum, density of intervals and weights; one loss on every path; it trains on data alone."""

import math

import pytest
import torch
from torch import nn

from gen.diffusion import parameterisation
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.distillers.ict import ICT
from gen.distillers.lib.consistency import pseudo_huber, sigma_of_t
from gen.training.objectives import Batch
from tests.distill.toys import Quick

F64 = torch.float64


def test_the_number_of_nodes_doubles_as_published():
    """Song & Dhariwal 2024, table 1: 10 to 1280 intervals in eight stages of 50,000 updates."""
    method = ICT(double_every=50_000)
    assert [method.steps_at(50_000 * k) - 1 for k in range(8)] == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert method.steps_at(49_999) == 11 and method.steps_at(10**9) == 1281
    assert ICT(grid_steps=(10, 70), double_every=1).steps_at(3) == 71


@pytest.mark.parametrize("path", [EDM(), Flow()], ids=repr)
def test_intervals_have_the_shares_of_a_log_normal(path):
    method, count = ICT(), 11
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    found = torch.bincount(method.intervals(u, path, count), minlength=count) / len(u)
    sigma = sigma_of_t(path, method.grid.times(path, count)).clamp(min=1e-300)
    ends = torch.erf((sigma.log() - method.mean) / (method.std * math.sqrt(2)))
    share = ends[:-1] - ends[1:]
    torch.testing.assert_close(found.double(), share / share.sum(), rtol=0, atol=2e-5)


class Blind(nn.Module):
    """A network that does not see the time, but the scaled input, which EDM's parameterisation has alike on paths."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.weight * (2 * x).sin() + 0.3


def batch(n=64):
    noise = Quick(n, 5)
    return Batch(noise.normal("data", (4,)), {}, noise)


@pytest.mark.parametrize("path", [Flow(), Trig(), VP()], ids=repr)
def test_the_loss_is_the_same_on_every_path(path):
    kind, method = parameterisation.EDMPrecond(0.5), ICT(class_dropout=0)
    losses = [float(next(method({"net": Denoiser(Blind(), p, kind)}, batch()))[1].detach()) for p in (EDM(), path)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_pseudo_huber_is_the_published_one():
    a, b = torch.randn(5, 3, 4, dtype=F64), torch.randn(5, 3, 4, dtype=F64)
    square = ((a - b) ** 2).sum((1, 2))
    c = 0.00054 * math.sqrt(12)
    torch.testing.assert_close(pseudo_huber(a, b, 0.00054), (square + c**2).sqrt() - c)
    torch.testing.assert_close(pseudo_huber(a, b, 0.0), square.sqrt())
    torch.testing.assert_close(pseudo_huber(a, b, 1e4), square / (2e4 * math.sqrt(12)), rtol=1e-6, atol=1e-9)
    same = a.clone().requires_grad_()
    pseudo_huber(same, a, 0.0).sum().backward()
    assert torch.equal(same.grad, torch.zeros_like(a))


def test_one_point_of_data_is_learned_without_loss():
    """All paths end in it, so f is constant: with equal weights at both times the loss is zero."""

    class Point(nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return (x - 0.7) / t[:, None]  # the velocity eps - x0, from which x0 = 0.7

    noise = Quick(32, 1)
    f = Denoiser(Point(), Flow(), parameterisation.Velocity())
    loss = next(ICT(class_dropout=0)({"net": f}, Batch(torch.full((32, 1), 0.7, dtype=F64), {}, noise)))[1]
    assert float(loss) < 1e-8
