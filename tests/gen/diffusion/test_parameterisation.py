"""Parameterisations: six ways to say the same thing."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, Score, V, Velocity
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig, expand

PARAMS = [X0(), Eps(), Velocity(), V(), Score(), EDMPrecond()]
PATHS = [Flow(), Trig(), EDM(), VP(), DDPM()]


def world(path, n=64):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 3, 2, 2, generator=generator, dtype=torch.float64)
    return x0, eps, torch.linspace(0.05, 0.9, n, dtype=torch.float64) * path.t1


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("param", PARAMS, ids=repr)
def test_solve_inverts_target_and_det_carries_output_errors_to_x0_and_eps(param, path):
    """Back come x0 and eps to 1e-12, relative to how much the net's output is amplified; one time is a batch of it."""
    x0, eps, t = world(path)
    x = path.mix(x0, eps, t)
    pred = param.solve(path, x, param.target(path, x0, eps, t), t)
    scale = (1 + path.sigma(t) / path.alpha(t) + path.alpha(t) / path.sigma(t)).reshape(-1, 1, 1, 1)
    assert float(((pred.x0 - x0) / scale).abs().max()) < 1e-12
    assert float(((pred.eps - eps) / scale).abs().max()) < 1e-12
    torch.testing.assert_close(path.mix(*pred, t), x, rtol=0, atol=1e-11)
    out = param.target(path, x0, eps, t)
    one, many = param.solve(path, x, out, t[9]), param.solve(path, x, out, t[9].expand(len(x)))
    assert torch.equal(one.x0, many.x0) and torch.equal(one.eps, many.eps)
    wrong = param.solve(path, x, out + 1, t)
    det = param.det(path, t)
    torch.testing.assert_close(wrong.x0 - x0, expand(-path.sigma(t) / det, x).expand_as(x), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(wrong.eps - eps, expand(path.alpha(t) / det, x).expand_as(x), rtol=1e-7, atol=1e-9)


def test_published_targets():
    x0, eps, t = world(Flow())
    path, vp = Flow(), VP()
    c = t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Velocity().target(path, x0, eps, t), eps - x0, rtol=0, atol=0)
    alpha, sigma = vp.alpha(c), vp.sigma(c)
    torch.testing.assert_close(V().target(vp, x0, eps, t), alpha * eps - sigma * x0)
    torch.testing.assert_close(Score().target(vp, x0, eps, t), -eps / sigma)
    edm, sd = EDM(), 0.5
    root = (c**2 + sd**2).sqrt()
    x = x0 + c * eps
    published = (x0 - sd**2 / root**2 * x) / (c * sd / root)  # (D - c_skip x) / c_out
    torch.testing.assert_close(EDMPrecond(sd).target(edm, x0, eps, t), published)
    torch.testing.assert_close(EDMPrecond(sd).scale(edm, t), root.flatten().reciprocal())
    assert torch.equal(V().scale(vp, t), torch.ones_like(t))


def test_edm_targets_and_inputs_have_unit_variance_on_every_path():
    """The reason for its coefficients: for data of the stated spread, input and target are of size one at every t."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 8, 20_000, generator=generator, dtype=torch.float64)
    for path in PATHS:
        t = torch.linspace(0.05, 0.95, 8, dtype=torch.float64) * path.t1
        target = EDMPrecond(0.5).target(path, 0.5 * x0, eps, t)
        inputs = expand(EDMPrecond(0.5).scale(path, t), x0) * path.mix(0.5 * x0, eps, t)
        for values in (target, inputs):
            torch.testing.assert_close(values.std(1), torch.ones(8, dtype=torch.float64), rtol=0.03, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("param", [X0(), Velocity(), V(), EDMPrecond()], ids=repr)
def test_at_data_x0_is_x(param, path):
    if isinstance(path, (VP, DDPM)) and isinstance(param, Velocity):
        return  # sigma' is infinite at t = 0 there
    x = torch.randn(3, 2, dtype=torch.float64)
    pred = param.solve(path, x, x if isinstance(param, X0) else torch.randn_like(x), torch.zeros((), dtype=x.dtype))
    torch.testing.assert_close(pred.x0, x, rtol=0, atol=1e-14)
    assert torch.isfinite(pred.eps).all()


@pytest.mark.parametrize("param", [X0(), V(), EDMPrecond(), Velocity()], ids=repr)
def test_at_pure_noise_eps_is_x(param):
    path, t = Flow(), torch.ones((), dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 2, dtype=torch.float64)
    pred = param.solve(path, eps, param.target(path, x0, eps, t), t)
    torch.testing.assert_close(pred.eps, eps, rtol=0, atol=1e-14)
    torch.testing.assert_close(pred.x0, x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", [Flow(), Trig()], ids=repr)
@pytest.mark.parametrize("param", [Eps(), Score()], ids=repr)
def test_eps_and_score_do_not_determine_x0_at_pure_noise(param, path):
    """On Trig too, where cos(pi / 2) is 6e-17 in float64, which is no signal."""
    x = torch.randn(2, 3)
    with pytest.raises(UserError, match=r"does not determine x0 at t = .*, where alpha = 0"):
        param.solve(path, x, x, torch.tensor(path.t1, dtype=torch.float64))


def test_edm_refuses_a_spread_of_zero():
    with pytest.raises(UserError, match="sigma_data"):
        EDMPrecond(0)
