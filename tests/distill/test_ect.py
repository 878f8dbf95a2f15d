"""ECT: the published schedule on every path, its first stage, and a student that begins as a denoiser."""

import math

import pytest
import torch
from torch import nn

from gen.data.mixture import MixturePoints
from gen.diffusion import parameterisation
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.times import LogNormal
from gen.distillers.ect import ECT
from gen.distillers.lib.consistency import sigma_of_t
from gen.training.objectives import Batch
from tests.distill.test_ict import Blind, batch
from tests.distill.toys import Exact, Quick, quantile_error

F64 = torch.float64
SIGMA = torch.tensor([1e-3, 0.1, 1.0, 1.9, 2.0, 10.0, 79.0], dtype=F64)


def test_r_is_the_published_one():
    """locuslab/ect, training/loss.py: q = 2, k = 8, b = 1."""
    for stage in range(8):
        ratio = 1 - 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-SIGMA))
        r = ECT().next_time(EDM(), SIGMA, stage)
        torch.testing.assert_close(r, SIGMA * ratio.clamp(min=0), rtol=1e-9, atol=1e-12)
    first = ECT().next_time(EDM(), SIGMA, 0)
    assert bool((first[:4] == 0).all()) and bool((first[4:] > 0).all())  # denoising up to 1.95


@pytest.mark.parametrize("path", [EDM(), Flow(), Trig(), VP()], ids=repr)
def test_r_is_below_t_and_grows_with_t_and_stage(path):
    t = torch.linspace(1e-4, 0.999, 200, dtype=F64) * path.t1
    stages = torch.stack([ECT().next_time(path, t, stage) for stage in range(8)])
    assert bool((stages < t).all()) and bool((stages >= 0).all())
    assert bool((stages.diff(dim=1) >= -1e-12).all())
    assert bool((stages.diff(dim=0) >= -1e-12).all())
    assert bool((stages[7] > 0).all())


@pytest.mark.parametrize("path", [Flow(), Trig(), VP()], ids=repr)
@pytest.mark.parametrize("stage", [0, 4])
def test_the_loss_is_the_same_on_every_path(path, stage):
    kind, method = parameterisation.EDMPrecond(0.5), ECT(times=LogNormal(-1.1, 1.0), class_dropout=0)
    losses = []
    for p in (EDM(), path):
        drawn = batch()
        t = method.times.at(drawn.noise.uniform("t"), p)
        losses.append(float(method.losses(Denoiser(Blind(), p, kind), drawn, {}, t, stage)[0].mean().detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_first_stage_is_denoising_at_low_levels():
    f, drawn = Denoiser(Blind(), EDM(), parameterisation.EDMPrecond(0.5)), batch()
    t = torch.full((64,), 0.5, dtype=F64)
    losses = ECT().losses(f, drawn, {}, t, 0)[0]
    x0 = f(EDM().mix(drawn.x, drawn.normal("eps"), t), t, {}).x0
    torch.testing.assert_close(losses, (x0 - drawn.x).norm(dim=1) / 0.5)


def test_training_goes_nowhere_from_the_exact_map():
    """The mean target of each x_t, by quadrature over the data that lead there, is f(x_t, t) but for a small step."""
    path, kind, n = EDM(), parameterisation.EDMPrecond(1.0), 4001
    world = MixturePoints(dim=1, modes=2, std=0.4, uneven=True).world(path)
    f, method = Denoiser(Exact(world, kind), path, kind), ECT(huber=1e4)
    grid = torch.linspace(-4, 4, n, dtype=F64)[:, None]
    zero, t = torch.zeros(1, dtype=F64), torch.full((n,), 1.5, dtype=F64)
    for x_t in (-1.0, 0.3, 2.0):
        eps = (x_t - grid) / 1.5
        weight = (world.log_prob(grid, zero) - eps[:, 0] ** 2 / 2).softmax(0)
        drift = []
        for stage in (6, 7):
            r = method.next_time(path, t, stage)
            with torch.no_grad():
                mean = (weight * f(path.mix(grid, eps, r), r).x0[:, 0]).sum()
                ours = f(torch.full((1, 1), x_t, dtype=F64), t[:1]).x0
            drift.append(float(abs(mean - ours)))
        assert drift[1] < 1e-3
        assert drift[1] < 0.35 * drift[0]  # second order in the step


def test_the_stage_grows_and_stops():
    method = ECT(double_every=10, stages=4)
    assert [method.stage(k) for k in (0, 9, 10, 39, 40, 10**6)] == [0, 0, 1, 3, 3, 3]


class Rows(nn.Module):
    """A row of outputs at even inputs in [-5, 5] for each time, one at first that denoises; a call has one time.

    Between inputs it is Lagrange's polynomial of eight: what is handed on from row to row thousands of times must
    not be smeared on its way.
    """

    def __init__(self, path, param, times, world, points=480):
        super().__init__()
        self.told, self.points, self.near = path.t_to_network(times), points, torch.arange(-3, 5)
        self.scale = (self.near[:, None] - self.near + torch.eye(8, dtype=F64)).prod(1)
        t, x = torch.cartesian_prod(times, torch.linspace(-5, 5, points + 1, dtype=F64)).T
        pred = world(x[:, None] / param.scale(path, t)[:, None], t)
        rows = param.target(path, *pred, t).reshape(len(times), points + 1)
        self.rows = nn.ParameterList(row.clone() for row in rows)

    def forward(self, x, t, cond, *, s=None, tap=None):
        i = int((torch.searchsorted(self.told, t[0]) - 1).clamp(0, len(self.told) - 2))
        share = ((t[0] - self.told[i]) / (self.told[i + 1] - self.told[i])).clamp(0, 1)
        row = torch.lerp(self.rows[i], self.rows[i + 1], share)
        column = ((x / 5 + 1) / 2 * self.points).clamp(0, self.points)  # [B, 1]
        k = column.long().clamp(3, self.points - 4) + self.near  # [B, 8]
        away = column - k
        others = [torch.cat([away[:, :m], away[:, m + 1 :]], 1).prod(1) for m in range(8)]
        return (torch.stack(others, 1) / self.scale * row[k]).sum(1, keepdim=True)


def two(world, x, t):
    """Two x0 as likely as each other, with the mean and the deviation of what is known at x [B, 1]: [2B, 1]."""
    x = x.clone().requires_grad_()
    mean = world(x, t.expand(len(x))).x0
    spread = t * torch.autograd.grad(mean.sum(), x)[0].sqrt()  # Tweedie's formula on EDM's path
    return torch.cat([mean - spread, mean + spread]).detach()


@pytest.mark.slow
def test_a_denoiser_is_tuned_into_the_quantile_map():
    """The loss at its least, level after level from the data on, by the finest steps where the map bends most.

    Nothing is drawn: steps are so short that of what is known of x0 only the mean and the deviation are felt.
    """
    path, kind, method = EDM(20.0), parameterisation.EDMPrecond(1.0), ECT(huber=1e4, sharpness=0.0)
    world = MixturePoints(dim=1, modes=2, std=0.4, uneven=True).world(path)

    def stage(t):
        return 9 - min(3, round(abs(math.log2(t))))

    times = [torch.tensor([20.0], dtype=F64)]
    while times[-1] > 0.03:
        times.append(method.next_time(path, times[-1], stage(times[-1])))
    times = torch.cat(times).flip(0)
    f = Denoiser(Rows(path, kind, times, world), path, kind)
    assert quantile_error(f, world, 20.0) > 0.5
    for r, t, row in zip(times[:-1], times[1:], f.net.rows[1:], strict=True):
        x = torch.linspace(-5, 5, len(row), dtype=F64)[:, None] / kind.scale(path, t)
        x0 = two(world, x, t)
        noise = Quick(len(x0), 0)
        noise.drawn["eps"] = (x.repeat(2, 1) - x0) / t
        losses = method.losses(f, Batch(x0, {}, noise), {}, t.expand(len(x0)), stage(t))[0]
        (slope,) = torch.autograd.grad(losses.sum() / 2, row)
        with torch.no_grad():
            row -= method.huber * (t - r) * (kind.det(path, t) / t) ** 2 * slope  # Newton's step: a parabola
    assert max(quantile_error(f, world, t) for t in (20.0, 3.0, 1.0)) < 1e-2


def test_noise_beyond_all_data_does_no_harm():
    f = Denoiser(Blind(), Flow(), parameterisation.Velocity())
    t = torch.tensor([1.0, 1 - 1e-12], dtype=F64)
    losses = ECT().losses(f, Batch(torch.ones(2, 4, dtype=F64), {}, Quick(2, 0)), {}, t, 3)[0]
    assert bool(losses.isfinite().all())
    assert float(sigma_of_t(Flow(), t).max()) <= 1e6
