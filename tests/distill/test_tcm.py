"""TCM: the truncated map, where it is trained, its boundary, and a frozen first stage."""

import math

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.data.mixture import MixturePoints
from gen.diffusion import parameterisation
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.path import EDM, Flow
from gen.distillers.ect import ECT
from gen.distillers.lib.consistency import consistency_losses, ect_next_time, sigma_of_t
from gen.distillers.tcm import TCM, TruncatedConsistency
from tests.distill.test_ict import batch
from tests.distill.toys import batches
from tests.gen.tiny import tiny

F64 = torch.float64


class Says(nn.Module):
    """x0 = value on the flow path with flow prediction; the value is trained."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value), dtype=F64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        return (x - self.value) / t[:, None]


def says(value):
    return Denoiser(Says(value), Flow(), parameterisation.Velocity())


def test_the_first_stage_answers_below_the_start_and_the_second_from_it_on():
    f = TruncatedConsistency(says(1.0), says(2.0), 1.0)  # level 1 is t = 1/2
    t = torch.tensor([0.1, 0.499, 0.5, 0.9], dtype=F64)
    x = torch.randn(4, 1, dtype=F64)
    assert f(x, t).x0.flatten().tolist() == pytest.approx([1, 1, 2, 2])
    assert f(x[:2], t[:2]).x0.flatten().tolist() == pytest.approx([1, 1])
    assert f(x[2:], t[2:]).x0.flatten().tolist() == pytest.approx([2, 2])


def test_levels_have_the_cut_density_of_student():
    method = TCM(dof=2.0, std=0.5, mean=0.3)
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    z = ((method.sigma_quantile(u).log() - 0.3) / 0.5).numpy()
    from scipy.stats import kstest, t

    low, high = t.cdf([(0 - 0.3) / 0.5, (math.log(80) - 0.3) / 0.5], 2)
    assert kstest(z, lambda z: (t.cdf(z, 2) - low) / (high - low)).statistic < 1e-4
    ends = TCM().sigma_quantile(torch.tensor([0.0, 1 - 1e-12], dtype=F64))
    assert ends.tolist() == pytest.approx([1.0, 80.0])


def test_at_the_start_the_first_stage_is_the_target():
    """So the boundary's loss is the distance of the two stages there, and moves the second alone."""
    method = TCM(class_dropout=0)
    roles = {"net": says(2.0), "first_stage": says(1.5)}
    loss, logs = next(method(roles, batch(256)))[1:]
    gap = float(sigma_of_t(Flow(), torch.tensor(0.5, dtype=F64)))
    r = ect_next_time(EDM(), torch.ones(1, dtype=F64), method.gap, 8.0, 1.0)
    share = (batch(256).noise.uniform("boundary") < 0.25).double().mean() / 0.25
    assert float(logs["boundary_loss"]) == pytest.approx(float(2 * 0.5 / (gap - r) * share), rel=1e-9)
    assert float(loss.detach()) == pytest.approx(float(logs["consistency_loss"] + 0.1 * logs["boundary_loss"]))
    loss.backward()
    assert roles["net"].net.value.grad > 0 and roles["first_stage"].net.value.grad is None


def test_the_loss_vanishes_where_both_stages_agree_on_one_point():
    roles = {"net": says(0.7), "first_stage": says(0.7)}
    drawn = batch(64)
    drawn.x.fill_(0.7)
    assert float(next(TCM(class_dropout=0)(roles, drawn))[1].detach()) < 1e-8


def test_above_the_start_it_is_ects_loss():
    world = MixturePoints(dim=1, modes=2, std=0.4).world(Flow())
    drawn, t = next(batches(world, 32, 1)), torch.full((32,), 0.9, dtype=F64)
    f, method = says(0.4), TCM()
    ours = method.losses({"net": f, "first_stage": says(9.0)}, drawn, {}, t)[0]
    r = ect_next_time(Flow(), t, method.gap, method.sharpness, method.slope)
    assert torch.equal(ours, consistency_losses(f, f, drawn, {}, t, r, method.huber)[0])
    assert torch.equal(ours, ECT().losses(f, drawn, {}, t, 7)[0])


def test_its_sampler_stays_above_the_start():
    for path in (Flow(), EDM()):
        for steps in (1, 2, 4):
            times = TCM().sampler.grid.times(path, steps)[:-1]
            assert float(sigma_of_t(path, times).min()) >= 1 - 1e-9
    assert TCM().sampler.grid.times(EDM(), 2).tolist() == pytest.approx([80, 1, 0])


def test_a_denoiser_is_no_first_stage(tmp_path):
    with pytest.raises(UserError, match="distil it by ect first"):
        TCM().student(tiny(), tmp_path, tmp_path)
