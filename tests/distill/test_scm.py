"""sCM: the exact map has no tangent, on every path; its pieces are the paper's; students of mixtures."""

import math

import pytest
import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import EDMPrecond, V
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.times import Uniform
from gen.distillers.lib.jvp import directional_derivative
from gen.distillers.scm import SCM
from tests.distill.line import Exact, Taught, batch, student, world


def times(path, n=64):
    t = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.02 + 0.97 * t) * path.t1


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("path", [Flow(), Trig(), VP(), EDM(10.0)], ids=lambda p: type(p).__name__)
def test_the_tangent_of_the_exact_map_is_zero(path, sigma_data):
    mixture, method, t = world(path), SCM(sigma_data=sigma_data, adaptive=False), times(path)
    for wrong, low, high in ((1.0, 0.0, 1e-10), (1.1, 1e-3, math.inf)):
        roles = {"net": Exact(mixture, wrong), "teacher": Taught(mixture)}
        _, g = method.output_and_tangent(roles, batch(mixture, 64), {}, t, 1.0)
        assert low <= g.abs().mean() < high


def random_student(path, param):
    f = student(path, param, False, width=16)
    for weight in f.net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return f


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_the_tangent_is_that_of_the_paper(r):
    """On Trig with V: g = -cos^2 (F - dx/dt) - r cos sin (x + dF/dt), and at r = 1 it is cos(t) df/dt."""
    f, mixture, t = random_student(Trig(), V()), world(Trig()), times(Trig())
    points = batch(mixture, 64)
    out, g = SCM(velocity="data").output_and_tangent({"net": f}, points, {}, t, r)
    z = points.normal("eps")
    cos, sin = (c[:, None, None, None] for c in (t.cos(), t.sin()))
    x, v = cos * points.x + sin * z, cos * z - sin * points.x

    def net(x, t):
        return f.output(x, t)

    def denoised(x, t):
        return t.cos()[:, None, None, None] * x - t.sin()[:, None, None, None] * net(x, t)

    change, whole = (directional_derivative(h, x, t, v, torch.ones_like(t)) for h in (net, denoised))
    torch.testing.assert_close(out, net(x, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g, (-(cos**2) * (out - v) - r * cos * sin * (x + change)).detach(), rtol=1e-9, atol=1e-9)
    if r == 1:
        torch.testing.assert_close(g, (cos * whole).detach(), rtol=1e-9, atol=1e-9)


def test_the_damping_is_the_paper_s_in_the_units_of_the_data():
    """Algorithm 1 has g / (|g| + c) for g in the data's units, sigma_data times the one here; ours must be equal."""
    f, mixture, c = random_student(Trig(), V()), world(Trig()), 0.1
    method, points = SCM(velocity="data", sigma_data=0.5, damping=c, adaptive=False, warmup=0), batch(mixture, 64)
    ((_, loss, _),) = method({"net": f}, points)
    t = method.times.at(points.noise.uniform("t"), f.path)
    _, g = method.output_and_tangent({"net": f}, points, {}, t, 1.0)
    g = 0.5 * g.flatten(1)
    published = g / (g.norm(dim=1, keepdim=True) + c)
    torch.testing.assert_close(loss.detach(), (published**2).mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", [Flow(), EDM(10.0)], ids=lambda p: type(p).__name__)
def test_one_network_has_one_tangent_on_all_paths(path):
    """EDM's parameterisation is -F of TrigFlow with the same sigma_data: the same F at the same noise level."""
    sd, t = 0.5, torch.full((64,), 0.7, dtype=torch.float64) * path.t1
    points, method = batch(world(path), 64), SCM(velocity="data", sigma_data=sd)

    class Still(torch.nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return -x.sin()

    out, g = method.output_and_tangent({"net": Denoiser(Still(), path, EDMPrecond(sd))}, points, {}, t, 1.0)
    angle = torch.atan2(path.sigma(t), sd * path.alpha(t))
    cos, sin = (c[:, None, None, None] for c in (angle.cos(), angle.sin()))
    eps = points.normal("eps")
    y, dy = cos * points.x / sd + sin * eps, cos * eps - sin * points.x / sd
    torch.testing.assert_close(out, y.sin(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g, -(cos**2) * (y.sin() - dy) - cos * sin * (y + y.cos() * dy), rtol=1e-9, atol=1e-9)


def test_the_step_is_the_shortened_tangent():
    """d loss / d F = -2 g / (|g| + 0.1) / n, in a run without learned weights; the loss is |g|^2."""
    f, mixture = random_student(Trig(), V()), world(Trig())
    points = batch(mixture, 64, step=5)
    seen = {}

    class Kept(SCM):
        def output_and_tangent(self, roles, batch, cond, t, r):
            out, g = super().output_and_tangent(roles, batch, cond, t, r)
            out.retain_grad()
            seen.update(out=out, g=g, r=r, t=t)
            return out, g

    kept = Kept(times=Uniform(), velocity="data", warmup=10, adaptive=False)
    role, loss, logs = next(kept({"net": f}, points))
    loss.backward()
    short = seen["g"] / (seen["g"].abs() + 0.1)
    assert role == "net" and seen["r"] == 0.5 == float(logs["rise"])
    torch.testing.assert_close(seen["out"].grad, -2 * short / 64, rtol=1e-9, atol=1e-12)
    assert float(loss.detach()) == pytest.approx(float(short.square().mean()))
    prior = next(Kept(times=Uniform(), velocity="data", warmup=10, adaptive=False, prior=1.0)({"net": f}, points))[1]
    scale = seen["t"].tan()[:, None, None, None]
    assert float(prior.detach()) == pytest.approx(float((short.square() / scale).mean()))


def test_the_learned_weight_is_the_logarithm_of_the_loss():
    """At its best e^-u L + u has u = ln L, and is then 1 + ln L."""
    f, mixture = random_student(Trig(), V()), world(Trig())
    method = SCM(times=Uniform(0.5, 0.500001), velocity="data", warmup=0)
    nets = method.roles(f.net, None)
    roles = {"net": f, "weight": Denoiser(nets["weight"], Trig(), V())}
    optim = torch.optim.LBFGS(nets["weight"].parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optim.zero_grad()
        role, value, logs = next(method(roles, batch(mixture, 32)))
        assert role == ("net", "weight")
        value.backward()
        seen.update(loss=float(value.detach()), error=float(logs["error"]))
        return value

    seen = {}
    optim.step(loss)
    loss()
    assert seen["loss"] == pytest.approx(1 + math.log(seen["error"]), abs=1e-3)
