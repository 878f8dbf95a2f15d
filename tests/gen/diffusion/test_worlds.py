"""The exact worlds must be exact: everything else is measured against them."""

from __future__ import annotations

import math

import pytest
import torch

from gen.diffusion.path import DDPM, EDM, VP, Flow, Prediction, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian, Mixture, chord
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.jump import Jump
from tests.ode import euler_std, measured_order, runge_kutta, straightness

PATHS = [Flow(), Trig(), EDM(), VP(), DDPM()]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(path):
    return Gaussian(path, f64(1.0, -2.0), f64(0.3, 1.5))


def mixture(path):
    means = f64([2, 0], [-1, 1.5], [-1, -1.5])
    return Mixture(path, means, f64(0.3, 0.2, 0.4), f64(0.5, 0.2, 0.3), torch.tensor([0, 1, 1]))


def points(path, n=16):
    generator = torch.Generator().manual_seed(0)
    x0, y = mixture(path).sample(n, generator)
    t = torch.linspace(0.1, 0.9, n, dtype=torch.float64) * path.t1
    return path.mix(x0, torch.randn(n, 2, generator=generator, dtype=torch.float64), t), t, y


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_mixtures_score_is_the_gradient_of_its_log_density(path, labelled):
    world, (x, t, y) = mixture(path), points(path)
    cond = {"y": y} if labelled else None
    x.requires_grad_()
    expected = torch.autograd.grad(world.log_prob(x, t, cond).sum(), x)[0]
    torch.testing.assert_close(world.score(x, t, cond), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_gaussians_score_is_the_gradient_of_its_log_density(path):
    world, (x, t, _) = gaussian(path), points(path)
    x.requires_grad_()
    spread = world.spread(t)
    centre = path.alpha(t)[:, None] * world.mean
    log = torch.distributions.Normal(centre, spread).log_prob(x).sum()
    torch.testing.assert_close(world.score(x, t), torch.autograd.grad(log, x)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_predictions_add_up_to_x(make, path):
    x, t, _ = points(path)
    torch.testing.assert_close(path.mix(*make(path)(x, t), t), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_mixture_of_one_is_a_gaussian(path):
    one = Mixture(path, f64([1.0, -2.0]), f64(0.7), f64(1.0), torch.tensor([0]))
    same = Gaussian(path, f64(1.0, -2.0), f64(0.7, 0.7))
    x, t, _ = points(path)
    for a, b in zip(one(x, t), same(x, t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_one_time_for_all_is_the_same_time_for_each(make, path):
    world, (x, t, _) = make(path), points(path)
    one, many = world(x, t[5]), world(x, t[5].expand(len(x)))
    torch.testing.assert_close(one.x0, many.x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(one.eps, many.eps, rtol=0, atol=1e-14)


def test_the_mixtures_density_integrates_to_one():
    line = Mixture(Flow(), f64([2.0], [-1.0]), f64(0.3, 0.2), f64(0.4, 0.6), torch.tensor([0, 1]))
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(line.log_prob(x, f64(0.3)).exp(), x[:, 0])
    assert float(mass) == pytest.approx(1, abs=1e-10)


def test_x0_is_the_posterior_mean_by_quadrature():
    line = Mixture(Flow(), f64([2.0], [-1.0]), f64(0.3, 0.2), f64(0.4, 0.6), torch.tensor([0, 1]))
    x0 = torch.linspace(-6, 6, 40_001, dtype=torch.float64)[:, None]
    prior = line.log_prob(x0, f64(0.0)).exp()
    x, t = f64([0.4]), f64(0.45)
    weight = prior * torch.exp(-((x - 0.55 * x0) ** 2).sum(1) / (2 * 0.45**2))
    assert float(line(x, t).x0) == pytest.approx(float((weight * x0[:, 0]).sum() / weight.sum()), rel=1e-9)


def test_labels_choose_components_and_null_chooses_all():
    world, (x, t, y) = mixture(Flow()), points(Flow())
    assert world.classes == 2
    null = world.null({"y": y, "other": y})
    assert set(null) == {"y", "other"}
    torch.testing.assert_close(world(x, t, null).x0, world(x, t).x0, rtol=0, atol=0)
    first = Gaussian(Flow(), world.means[0], world.stds[0].expand(2))
    torch.testing.assert_close(world(x, t, {"y": torch.zeros_like(y)}).x0, first(x, t).x0, rtol=1e-9, atol=1e-11)


def test_samples_have_the_mixtures_moments():
    world = mixture(Flow())
    x, y = world.sample(100_000, torch.Generator().manual_seed(0))
    assert float((y == 1).double().mean()) == pytest.approx(0.5, abs=0.006)
    mean = (world.weights[:, None] * world.means).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.025)
    torch.testing.assert_close(x[y == 0].std(0), f64(0.3, 0.3), rtol=0.02, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_gaussian_flow_map_solves_its_ode(path):
    world, (x, _, _) = gaussian(path), points(path)
    t, s = f64(0.7 * path.t1, 0.3 * path.t1)
    if isinstance(path, DDPM):  # its derivatives jump at every entry: compare over one cell
        t, s = f64(700.9, 700.1)
    got = runge_kutta(world, x, float(t), float(s), 300)
    torch.testing.assert_close(world.flow(x, t, s), got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_flow_map_composes_and_comes_back(path):
    world, (x, t, _) = gaussian(path), points(path)
    s, r = t * 0.6, t * 0.2
    torch.testing.assert_close(world.flow(world.flow(x, t, s), s, r), world.flow(x, t, r), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(world.flow(world.flow(x, t, s), s, t), x, rtol=1e-10, atol=1e-10)


def test_sample_is_the_end_of_the_flow_that_starts_in_the_noise():
    noise = points(Flow())[0]
    torch.testing.assert_close(gaussian(Flow()).flow(noise, f64(1.0), f64(0.0)), gaussian(Flow()).sample(noise))


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_chord_leads_straight_to_its_end(path):
    x, t, _ = points(path)
    end, s = torch.randn_like(x), t * 0.3
    pred = chord(path, x, end, t, s)
    torch.testing.assert_close(path.advance(x, pred, t, s), end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.mix(*pred, t), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.mix(*pred, s), end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [Flow(), Trig(), EDM(), VP()], ids=repr)
@pytest.mark.parametrize("steps", [1, 3])
def test_jump_with_the_exact_average_velocity_lands(path, steps):
    world, x = gaussian(path), path.start(points(path)[0], f64(path.t1)[0])
    grid = torch.linspace(path.t1, 0, steps + 1, dtype=torch.float64)
    exact = world.flow(x, grid[0], grid[-1])
    torch.testing.assert_close(integrate(world, x, grid, Jump()), exact, rtol=0, atol=1e-12)


def test_one_euler_step_of_the_exact_flow_returns_the_mean():
    world = gaussian(Flow())
    x = integrate(world, points(Flow())[0], [1.0, 0.0], Euler())
    torch.testing.assert_close(x, world.mean.expand_as(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "std"), [(1, 0), (2, 0.26471), (4, 0.41953), (8, 0.50367), (32, 0.57448), (128, 0.59352)]
)
def test_euler_std_is_its_golden_number_and_what_euler_does(steps, std):
    assert euler_std(0.6, steps) == pytest.approx(std, abs=5e-6)
    world = Gaussian(Flow(), f64(3.0), f64(0.6))
    x = integrate(world, f64([1.0], [-1.0]), torch.linspace(1, 0, steps + 1, dtype=torch.float64), Euler())
    assert float((x[0] - x[1]) / 2) == pytest.approx(euler_std(0.6, steps), abs=1e-12)
    assert float(x.mean()) == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize("std", [0.3, 0.6, 1.0, 2.0])
def test_straightness_of_a_rectified_flow_of_a_gaussian(std):
    """x_t = (1 - t) m + S z with S^2 = (1 - t)^2 s^2 + t^2, so the deviation is (S' - (1 - s)) z.

    With u = (1 + s^2) t - s^2 the integral of S'^2 is that of u^2 / (u^2 + s^2); the whole is
    1 + s^2 - s pi / 2 - (1 - s)^2 = s (2 - pi / 2).
    """
    world, x = Gaussian(Flow(), f64(1.7), f64(std)), f64([1.0], [-1.0])
    exact = std * (2 - math.pi / 2)
    errors = [abs(straightness(world, x, steps) - exact) for steps in (128, 512)]
    assert errors[0] < 0.06 * exact
    assert errors[1] < errors[0] / 3.5  # it falls as 1 / steps


class Straight:
    """The Gaussian's linear coupling (1 - t)(m + s z) + t z: what one reflow makes of it."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        z = (x - (1 - t) * 1.7) / ((1 - t) * 0.6 + t)
        return Prediction(1.7 + 0.6 * z, z)


def test_straightness_of_straight_lines_is_zero():
    assert straightness(Straight(), torch.randn(8, 2, dtype=torch.float64)) < 1e-24


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_measured_order_on_the_gaussian(solver, order):
    x = points(Flow())[0]
    assert measured_order(solver, gaussian(Flow()), x, 0.8, 0.1, (32, 64, 128)) == pytest.approx(order, abs=0.05)


def test_runge_kutta_is_fourth_order():
    world, (x, _, _) = gaussian(Flow()), points(Flow())
    exact = world.flow(x, f64(0.8)[0], f64(0.1)[0])
    errors = [float((runge_kutta(world, x, 0.8, 0.1, n) - exact).norm()) for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(10.0), Trig()], ids=repr)
def test_on_the_line_the_flow_map_is_the_quantile_map(path):
    world = Mixture(path, f64([-1.0], [0.5], [2.0]), f64(0.2, 0.3, 0.1), f64(0.3, 0.3, 0.4), torch.tensor([0, 1, 2]))
    x, (t, s) = f64(-1.5, -0.5, 0.1, 1.5)[:, None], f64(0.9 * path.t1, 0.2 * path.t1)
    moved = world.flow(x, t, s)
    torch.testing.assert_close(moved, runge_kutta(world, x, float(t), float(s), 1000), rtol=0, atol=1e-11)
    torch.testing.assert_close(path.interpolate(world(x, t, s=s), s), moved, rtol=0, atol=1e-13)
    torch.testing.assert_close(world.flow(x, t.expand(4), s.expand(4)), moved, rtol=0, atol=0)
    torch.testing.assert_close(world.flow(moved, s, t), x, rtol=0, atol=1e-12)
