"""MeanFlow: the identity holds at the exact map on every path; its Gaussian formula; guidance inside; a student."""

import dataclasses

import pytest
import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, EDMPrecond, V, Velocity
from gen.diffusion.path import EDM, VP, Flow, Prediction, Trig
from gen.diffusion.worlds import Gaussian
from gen.distillers.lib.jvp import directional_derivative
from gen.distillers.lib.velocity import velocity_in_tau
from gen.distillers.meanflow import MeanFlow
from gen.samplers.solvers.jump import Jump
from gen.training.objectives import Batch
from tests.distill.line import Exact, Taught, batch, student, world

PATHS = [Flow(), Trig(), VP(), EDM(10.0)]
MEANFLOW = MeanFlow(velocity="teacher")


def times(path, n=64):
    t, part = torch.rand(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = (0.05 + 0.95 * t) * path.t1
    return t, t * part


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_the_loss_is_zero_at_the_exact_map(path, derivative):
    mixture, method = world(path), dataclasses.replace(MEANFLOW, derivative=derivative)
    roles, (t, s) = {"net": Exact(mixture), "teacher": Taught(mixture)}, times(path)
    assert method.errors(roles, batch(mixture, 64), {}, t, s).square().mean() < (1e-20 if derivative == "jvp" else 1e-8)
    assert method.errors(roles, batch(mixture, 64), {}, t, t).square().mean() < 1e-20
    wrong = roles | {"net": Exact(mixture, wrong=1.1)}
    assert method.errors(wrong, batch(mixture, 64), {}, t, s).square().mean() > 1e-4


def test_a_wrong_tangent_leaves_an_error():
    """With (1, 1) or (v, 0) in place of (v, 1) the exact map is no solution any more (table 1b of the paper)."""
    mixture, (t, s) = world(), times(Flow())
    f, x = Exact(mixture), batch(mixture, 64).x
    v = velocity_in_tau(Taught(mixture)(x, t))
    for dx, dt, fits in ((v, 1.0, True), (torch.ones_like(v), 1.0, False), (v, 0.0, False)):
        du = directional_derivative(lambda x, t: velocity_in_tau(f(x, t, s=s)), x, t, dx, torch.full_like(t, dt))
        error = (velocity_in_tau(f(x, t, s=s)) - v + (t - s)[:, None, None, None] * du).square().mean()
        assert (error < 1e-20) == fits
        assert fits or error > 1e-3


def test_the_pair_s_velocity_has_the_marginal_one_as_its_mean():
    """Errors of the exact map against single pairs are large, and zero on average over those that share x_t."""
    world_, n = Gaussian(Flow(), torch.zeros(1).double(), torch.ones(1).double()), 20_000
    t = torch.full((n,), 0.5, dtype=torch.float64)
    x0, eps = torch.randn(2, n, 1, dtype=torch.float64)

    class Given:
        def normal(self, name, shape):
            return eps

    class Slope:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            return world_(x, t)

    error = MeanFlow().errors({"net": Slope()}, Batch(x0, {}, Given()), {}, t, t)
    assert error.square().mean() > 0.5
    assert ((error * world_.path.mix(x0, eps, t)).mean()).abs() < 0.03


def test_the_average_velocity_of_a_gaussian():
    """u = -m + (S(t) - S(s)) / ((t - s) S(t)) (x - (1 - t) m), S^2 = (1 - t)^2 std^2 + t^2; it lands there too."""
    mean, std = torch.tensor([1.5]).double(), torch.tensor([0.6]).double()
    f, x = Gaussian(Flow(), mean, std), torch.randn(64, 1, dtype=torch.float64)
    t, s = times(Flow())
    spread_t, spread_s = (((1 - c) ** 2 * std**2 + c**2).sqrt()[:, None] for c in (t, s))
    a, b = t[:, None], s[:, None]
    exact = -mean + (spread_t - spread_s) / ((a - b) * spread_t) * (x - (1 - a) * mean)
    pred = f(x, t, s=s)
    torch.testing.assert_close(velocity_in_tau(pred), exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Flow().mix(pred.x0, pred.eps, s), x - (a - b) * exact, rtol=1e-12, atol=1e-12)
    v = f.path.velocity(f(x, t), t)
    du = directional_derivative(lambda x, t: velocity_in_tau(f(x, t, s=s)), x, t, v, torch.ones_like(t))
    torch.testing.assert_close(velocity_in_tau(pred), v - (a - b) * du, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("param", [Velocity(), Velocity("data"), V(), X0(), EDMPrecond()], ids=repr)
def test_every_parameterisation_jumps_by_its_average_velocity(param):
    f = student(Flow(), param, True, width=8)
    for weight in f.net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, t, s = torch.randn(4, 1, 1, 1).double(), torch.tensor(0.9).double(), torch.tensor(0.2).double()
    landed = Jump().step(f, Flow(), x, t, s, None, None)[0]
    u = velocity_in_tau(f(x, t.expand(4), s=s.expand(4)))
    torch.testing.assert_close(landed, x - (t - s) * u, rtol=1e-12, atol=1e-12)


class Labelled:
    """A flow map that says something else for every class; 2 is none."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        y = cond["y"].to(x)[:, None]
        return Prediction(x - t[:, None] * y, x + (1 - t[:, None]) * y)  # u = y

    def null(self, cond):
        return {"y": torch.full_like(cond["y"], 2)}


def test_guidance_mixes_the_velocities_where_it_is_asked_for():
    n, y = 4, torch.tensor([0, 1, 2, 1])  # the third row's condition was dropped
    t = torch.tensor([0.5, 0.6, 0.5, 0.95], dtype=torch.float64)  # the fourth is not guided
    x0, x = torch.zeros(n, 1).double(), torch.randn(n, 1, dtype=torch.float64)
    toward = Prediction(x0, x0 + 10)
    method = MeanFlow(omega=0.2, kappa=0.7, guidance_interval=(0.0, 0.75))
    got = velocity_in_tau(method.guided(Labelled(), x, t, {"y": y}, toward))[:, 0]
    assert torch.allclose(got, torch.tensor([0.2 * 10 + 0.1 * 2, 0.2 * 10 + 0.7 + 0.1 * 2, 10.0, 10.0]).double())
    assert MeanFlow().guided(Labelled(), x, t, {"y": y}, toward) is toward


@pytest.mark.parametrize(("power", "weight"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_the_adaptive_weight_divides_by_the_error(power, weight):
    """d loss / d error = 2 error / (error^2 + c)^p: with an error of 1/2 and c near zero, 4^p times as much."""

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x, t, cond, *, s=None, tap=None):
            return self.out.expand_as(x)

    f, n = Denoiser(Half(), Flow(), Velocity()), 8
    still = Batch(torch.zeros(n, 1).double(), {}, training_noise(0, 0, range(n)))

    class Still:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            return Prediction(x, x)  # no velocity

    method = MeanFlow(flow_share=1.0, velocity="teacher", power=power, damping=1e-9)
    _, loss, logs = next(method({"net": f, "teacher": Still()}, still))
    loss.backward()
    assert float(f.net.out.grad) == pytest.approx(weight, rel=1e-6)
    assert float(loss.detach()) == pytest.approx(0.25 ** (1 - power), rel=1e-6)
    assert float(logs["error"]) == pytest.approx(0.25)
