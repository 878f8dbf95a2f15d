"""Densities of t: each against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.times import Integers, Karras, LogitNormal, LogNormal, Mode, Point, Shifted, Uniform, UShaped

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


@pytest.mark.parametrize("path", [Flow(), EDM(), VP()], ids=repr)
def test_karras_is_the_sampling_grid_as_a_density(path):
    """DMD2's middle 96 % of it, as sigma / alpha: its ends and its middle, by the published formula."""
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    ends, got = (0.002 ** (1 / 7), 80 ** (1 / 7)), (-path.lam(Karras(0.02, 0.98).at(u, path))).exp()
    expected = [(ends[0] + v * (ends[1] - ends[0])) ** 7 for v in (0.02, 0.5, 0.98)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)
    with pytest.raises(UserError, match=r"high = 0\.5; it must be in"):
        Karras(low=0.5, high=0.5)


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


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 1.29, 1.75])
def test_mode_is_the_published_map_and_grows_with_u(scale):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    published = 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)  # Esser et al. 2024, eq. 20; u backwards
    t = Mode(scale).at(u, Flow())
    torch.testing.assert_close(t.flip(0), published, rtol=0, atol=1e-15)
    torch.testing.assert_close(t + t.flip(0), torch.ones_like(t), rtol=0, atol=1e-15)
    assert (t.diff() >= 0).all()
    torch.testing.assert_close(Mode(scale).at(u, Trig()), t * math.pi / 2)


def test_mode_is_the_density_its_paper_draws():
    """p = 1 / (dt/du): at the middle 1 / (1 + s - s pi / 2), at the ends 1 / (1 + s)."""
    s = 1.29
    got = density(Mode(s), Flow(), [0.0, 0.5, 1.0])
    expected = torch.tensor([1 / (1 + s), 1 / (1 + s - s * math.pi / 2), 1 / (1 + s)], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    assert torch.equal(Mode(0).at(stratified(9), Flow()), stratified(9))


@pytest.mark.parametrize("shift", [0.3, 3.0, 6.928203230275509])
def test_shifted_adds_its_logarithm_to_the_logit(shift):
    u = torch.linspace(1e-3, 1 - 1e-3, 999, dtype=torch.float64)
    t, plain = Shifted(LogitNormal(), shift).at(u, Flow()), LogitNormal().at(u, Flow())
    torch.testing.assert_close(t, shift * plain / (1 + (shift - 1) * plain), rtol=0, atol=4e-14)
    torch.testing.assert_close(t.logit(), plain.logit() + math.log(shift), rtol=0, atol=1e-12)
    torch.testing.assert_close(t, LogitNormal(math.log(shift)).at(u, Flow()), rtol=0, atol=4e-14)
    assert (t > plain).all() if shift > 1 else (t < plain).all()  # more noise, since t = 1 is the noise


def test_a_shift_of_one_changes_no_bit():
    u = stratified(1000)
    assert torch.equal(Shifted(LogitNormal()).at(u, Flow()), LogitNormal().at(u, Flow()))
    assert torch.equal(Shifted(UShaped(), dim=4096).at(u, VP()), UShaped().at(u, VP()))


def test_the_shift_of_a_dimension_is_that_of_rae():
    times = build("diffusion.times", {"name": "shifted", "inner": "logit_normal", "dim": 16 * 16 * 768})
    assert times.factor == pytest.approx(6.9282, abs=1e-4)
    assert build("diffusion.times", spec_of(times)) == times
    assert torch.equal(
        times.at(stratified(99), Flow()), Shifted(LogitNormal(), times.factor).at(stratified(99), Flow())
    )


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_shifted_multiplies_the_noise_level_on_every_path(path):
    u = torch.linspace(0.2, 0.4, 41, dtype=torch.float64)
    t, plain = Shifted(LogNormal(), 2.0).at(u, path), LogNormal().at(u, path)
    torch.testing.assert_close(path.lam(t), path.lam(plain) - math.log(2), rtol=1e-8, atol=1e-8)


DENSITIES = [Uniform(), LogitNormal(), LogNormal(), UShaped(), Point(), Mode(), Mode(-1), Shifted(Mode(), 4.0)]
CLOSED = {  # distribution functions on the flow path
    "uniform": (Uniform(), lambda t: t),
    "logit normal": (LogitNormal(0.3, 0.8), lambda t: torch.special.ndtr((t.logit() - 0.3) / 0.8)),
    "log-normal of EDM2": (LogNormal(-0.4, 1.0), lambda t: torch.special.ndtr(t.logit() + 0.4)),
    "u-shaped": (UShaped(4.0), lambda t: 0.5 + torch.sinh(4 * (t - 0.5)) / (2 * math.sinh(2))),
    "shifted": (Shifted(Uniform(), 3.0), lambda t: t / (3 - 2 * t)),
}


@pytest.mark.parametrize("case", CLOSED)
def test_random_draws_pass_kolmogorov_and_smirnov(case):
    times, distribution = CLOSED[case]
    n = 20_000
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = distribution(times.at(u, Flow()).sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - found).abs(), (found - steps[:-1]).abs()).max()
    assert float(distance) < 1.63 / math.sqrt(n)  # the 1 % point


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("times", DENSITIES, ids=repr)
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
        lambda: Mode(1.76),
        lambda: Mode(-1.01),
        lambda: Shifted(shift=0),
        lambda: Shifted(dim=0),
        lambda: Shifted(shift=2, dim=16),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(bad):
    with pytest.raises(UserError) as error:
        bad()
    assert "\n" not in str(error.value)
