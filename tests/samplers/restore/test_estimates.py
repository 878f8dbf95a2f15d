"""Methods whose result is no sample of a solver, on the Gaussian world, each against its own closed form."""

from dataclasses import dataclass, replace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.moments import affine_moments
from gen.diffusion.noise import Noise
from gen.diffusion.path import DDPM, EDM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Correlated
from gen.operators.physics import Physics
from gen.samplers.restore.lib.descent import minimised
from gen.samplers.restore.lib.restorer import level
from tests.samplers.restore.worlds import MEAN, PAIRS, PROBLEMS, D, compared, moments, operator, world

Y = PROBLEMS["pairs"][1]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_pnp_flow_has_the_mean_and_spread_of_its_few_draws():
    draws = [f"{i} {k}" for i in range(100) for k in range(5)]
    at_one = {"name": "pnp_flow", "rate": 0.5, "power": 1.0}  # |A|^2 = 1/2: steps of 1
    mean, covariance = moments(build("samplers.restore", at_one), "pairs", world(Flow()), draws)
    expected = f64(0.70795, -0.18437, 0.09288, -0.08377, -0.20568, 0.40999)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-5)
    assert float(covariance.trace()) == pytest.approx(0.08240, abs=1e-5)


def test_red_diff_has_its_own_fixed_point():
    """A'(A mu - y) / 3 + W (mu - m) / 6 = 0, W the mean of .25 s^2 (S + s^2)^-1 over the levels."""
    path, on, method = DDPM(), operator(PAIRS), build("samplers.restore", "red_diff")
    times, rows, eye = f64(*range(1, 1001, 50)).unbind(), Noiseless((1,)).normal("", (D,)), torch.eye(D).double()

    def fixed(levels):
        W = sum(0.25 * s**2 * torch.linalg.inv(world().covariance + s**2 * eye) for s in levels) / len(levels) / D
        return torch.linalg.solve(PAIRS.mT @ PAIRS / 3 + W, PAIRS.mT @ Y / 3 + W @ MEAN)[None]

    def slope(mu):
        return sum(method.gradient(world(path), mu, Y[None], on, t, rows) for t in times) / len(times)

    there = fixed([level(path, t) for t in times])
    assert slope(there).abs().max() < 1e-12 and slope(there + 0.1).abs().min() > 1e-2
    one_level = build("samplers.restore", {"name": "red_diff", "steps": 700, "lr": 0.02, "grid": Constant(1.0)})
    found = one_level.restore(world(), Y[None], on, (1, D), Noiseless((1,)))
    torch.testing.assert_close(found, fixed([1.0]), rtol=0, atol=2e-3)
    y = MEAN[None] + 1
    replace(one_level, steps=2).restore(world(), y, Physics(Identity()).on((D,)), (1, D), Noiseless((1,)))
    assert torch.equal(y, MEAN[None] + 1)  # though A+ y is y itself


class Identity:
    """A physics that measures everything."""

    A = A_adjoint = A_dagger = staticmethod(lambda x: x)


@dataclass(frozen=True)
class Constant:
    """A grid that stays at one level."""

    level: float

    def times(self, path, steps):
        return f64(*[self.level] * (steps + 1))


class Noiseless(Noise):
    """Draws of zeros."""

    def normal(self, name, shape):
        return torch.zeros(len(self.seeds), *shape, dtype=torch.float64)


def test_flow_dps_has_the_law_of_its_own_recursion():
    """x0'' = x0 + t P (A+ y - x0) with P = 1 - (1 - rate A'A / |A|^2)^3, 1 - s of the noise's variance fresh."""
    method = build("samplers.restore", {"name": "flow_dps", "rate": 0.8})
    mean, covariance = torch.zeros(D).double(), torch.eye(D).double()
    eye, S = torch.eye(D).double(), world().covariance
    P = eye - torch.linalg.matrix_power(eye - 0.8 * PAIRS.mT @ PAIRS * 2, 3)
    known = PAIRS.pinverse() @ Y
    for i in range(28):
        t, s = 1 - i / 28, 1 - (i + 1) / 28
        gain = (1 - t) * S @ torch.linalg.inv((1 - t) ** 2 * S + t**2 * eye)  # x0 = m + gain (x - (1 - t) m)
        x0, offset = gain, MEAN - (1 - t) * gain @ MEAN
        eps, eps_offset = (eye - (1 - t) * x0) / t, -(1 - t) * offset / t
        F = (1 - s) * (eye - t * P) @ x0 + s**1.5 * eps
        b = (1 - s) * ((eye - t * P) @ offset + t * P @ known) + s**1.5 * eps_offset
        mean, covariance = F @ mean + b, F @ covariance @ F.mT + s**2 * (1 - s) * eye
    found = moments(method, "pairs", world(Flow()))
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], covariance, rtol=0, atol=1e-9)
    figures = compared(build("samplers.restore", "flow_dps"), "pairs", world(Flow()))
    assert figures == pytest.approx([0.5005, 0.9654, 0.547, 2.994], rel=1e-3)


@pytest.mark.parametrize(("path", "problem"), [(Flow(), "pairs"), (EDM(80.0), "known")], ids=repr)
def test_d_flow_is_exact_without_noise(path, problem):
    """For the Gaussian that its few steps make of noise."""
    (A, y, _), prior = PROBLEMS[problem], world(path)
    method = build("samplers.restore", {"name": "d_flow", "weight": 0.0, "iterations": 20})
    times = method.grid.times(path, method.steps)
    made = Correlated(path, *affine_moments(
        lambda rows, noise: integrate(prior, path.start(noise.normal("start", (D,)), times[0]), times, method.solver),
        D, ["start"],
    ))  # fmt: skip
    exact, (mean, covariance) = made.posterior(A, y, 0.0), moments(method, (A, y, 0.0), prior, ["start"])
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, exact.covariance, rtol=0, atol=1e-10)


def test_d_flow_s_regulariser_is_that_of_the_noise_s_length():
    """Of an operator that measures nothing |z|^2 = d - 1 is left, in the direction that the noise had."""
    method = build("samplers.restore", {"name": "d_flow", "iterations": 20, "weight": 0.5})
    prior, nothing = Correlated(EDM(80.0), f64(*[0] * D), torch.eye(D).double()), torch.zeros(1, D).double()
    z = Noise((1, 2)).normal("start", (D,)).double()
    made = method.restore(prior, torch.zeros(2, 1).double(), operator(nothing), (2, D), Noise((1, 2)))
    way = made / made.norm(dim=1, keepdim=True)
    torch.testing.assert_close(way, z / z.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert float(made.norm(dim=1).std()) < 1e-6
    direct = build("samplers.restore", {"name": "d_flow", "iterations": 1, "weight": 0.0})
    plain = direct.restore(prior, torch.zeros(2, 1).double(), operator(nothing), (2, D), Noise((1, 2)))
    torch.testing.assert_close(made, plain * (D - 1) ** 0.5 / z.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_each_row_is_minimised_by_itself():
    """Rosenbrock's valley from several points: all reach its lowest, each as if it were alone."""

    def loss(z):
        a, b = z.unbind(1)
        value = (1 - a) ** 2 + 100 * (b - a**2) ** 2
        return value, torch.stack([2 * (a - 1) - 400 * a * (b - a**2), 200 * (b - a**2)], 1)

    starts = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [1.0, 1.0], [3.0, -4.0]], dtype=torch.float64)
    found = minimised(loss, starts, 80)
    torch.testing.assert_close(found, torch.ones(4, 2).double(), rtol=0, atol=1e-6)
    assert torch.equal(minimised(loss, starts[3:], 80)[0], found[3])


def test_rates_are_below_two():
    for name in ("pnp_flow", "flow_dps"):
        with pytest.raises(UserError, match="rate = 2"):
            build("samplers.restore", {"name": name, "rate": 2.0})
