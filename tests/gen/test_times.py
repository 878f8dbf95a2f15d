"""Densities of t: each against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from gen.errors import UserError
from gen.path import DDPM, EDM, VP, Flow, Trig
from gen.times import Integers, LogitNormal, LogNormal, Point, Uniform, UShaped

PATHS = [Flow(), Trig(), EDM(), VP(), DDPM()]


def density(times, path, t):
    """p(t) = du/dt, by central differences of the inverse distribution function."""
    u = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
    at = times.at(u, path)
    i = torch.searchsorted(at, torch.as_tensor(t, dtype=torch.float64)).clamp(1, len(u) - 2)
    return 2 * (u[1] - u[0]) / (at[i + 1] - at[i - 1])


def stratified(n=200_000):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_u_shaped_is_the_published_density():
    """4 cosh(4 (t - 1/2)) / (2 sinh 2): 2.0746 at the ends, .5514 in the middle."""
    got = density(UShaped(4.0), Flow(), [0.0, 0.25, 0.5, 0.75, 1.0])
    expected = torch.tensor([2.0746, 0.8509, 0.5514, 0.8509, 2.0746], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    ends = UShaped().at(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), Flow())
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("path", [Flow(), Trig(), DDPM()], ids=repr)
def test_logit_normal(path):
    mean, std = 0.3, 0.8
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    normal = torch.distributions.Normal(mean, std).log_prob(t.logit()).exp()
    got = density(LogitNormal(mean, std), path, t * path.t1)
    torch.testing.assert_close(got * path.t1, normal / (t * (1 - t)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_log_normal_is_log_normal_in_the_noise_level_on_every_path(path):
    times = LogNormal(-1.2, 1.2)
    n = torch.linspace(-2, 2, 41, dtype=torch.float64)
    t = times.at(torch.special.ndtr(n), path)
    torch.testing.assert_close(-path.lam(t), -1.2 + 1.2 * n, rtol=1e-8, atol=1e-8)
    t = times.at(stratified(), path)
    assert float(t.max()) <= path.t1
    log = -path.lam(t)
    log = log[t < path.t1]
    assert float(log.median()) == pytest.approx(-1.2, abs=0.01)


def test_uniform_fills_its_interval():
    t = Uniform(0.25, 0.5).at(stratified(), Trig())
    share = torch.histc(t / Trig().t1, bins=4, min=0, max=1) / len(t)
    assert share.tolist() == pytest.approx([0, 1, 0, 0], abs=1e-5)


def test_integers_hit_every_entry_of_a_table_equally():
    path = DDPM(steps=8)
    t = Integers().at(stratified(80_000), path)
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == list(range(1, 9))
    assert counts.tolist() == [10_000] * 8


def test_point_is_one_time():
    u = torch.rand(5, dtype=torch.float64)
    assert torch.equal(Point().at(u, EDM()), torch.full_like(u, 80))
    assert torch.equal(Point(0.5).at(u, Flow()), torch.full_like(u, 0.5))


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("times", [Uniform(), LogitNormal(), LogNormal(), UShaped(), Point()], ids=repr)
def test_all_stay_in_range_even_at_the_ends_of_u(times, path):
    t = times.at(torch.tensor([0.0, 2.0**-63, 0.5, 1 - 2.0**-53], dtype=torch.float64), path)
    assert t.dtype == torch.float64
    assert t.shape == (4,)
    assert bool(torch.isfinite(t).all())
    assert float(t.min()) >= 0
    assert float(t.max()) <= path.t1
    assert (t.diff() >= 0).all()


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Uniform(0.5, 0.5),
        lambda: Uniform(-0.1, 1),
        lambda: Point(0),
        lambda: Point(1.1),
        lambda: LogitNormal(std=0),
        lambda: LogNormal(std=-1),
        lambda: UShaped(0),
        lambda: UShaped(math.nan),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(bad):
    with pytest.raises(UserError) as error:
        bad()
    assert "\n" not in str(error.value)
