"""Weightings: the published formula in every parameterisation."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion import parameterisation
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.times import Point
from gen.diffusion.weighting import EDMWeighting, MinSNR, Sigmoid, UniformWeighting
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising
from tests.gen.tiny import tiny

PATHS = [Flow(), Trig(), EDM(), VP(), DDPM()]
PARAMS = [
    parameterisation.X0(),
    parameterisation.Eps(),
    parameterisation.Velocity(),
    parameterisation.V(),
    parameterisation.Score(),
    parameterisation.EDMPrecond(),
]


def times(path):
    return torch.linspace(0.01, 0.95, 37, dtype=torch.float64) * path.t1


def snr(path, t):
    return (path.alpha(t) / path.sigma(t)) ** 2


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_min_snr_is_what_its_paper_prints(path):
    """Hang et al. 2023: min(SNR, g) for x0, min(SNR, g) / SNR for eps; for v on a VP path min(SNR, g) / (SNR + 1)."""
    t, gamma = times(path), 5.0
    ratio, clipped = snr(path, t), snr(path, t).clamp(max=gamma)
    close(MinSNR(gamma).weight(path, parameterisation.X0(), t), clipped)
    close(MinSNR(gamma).weight(path, parameterisation.Eps(), t), clipped / ratio)
    if not isinstance(path, (Flow, EDM)):
        close(MinSNR(gamma).weight(path, parameterisation.V(), t), clipped / (ratio + 1))


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_sigmoid_is_its_formula_on_the_error_of_eps(path):
    """Kingma & Gao 2023: w(lambda) (-dlambda / dt), the derivative of log SNR by autograd."""
    t = times(path).requires_grad_()
    level = snr(path, t).log()
    (slope,) = torch.autograd.grad(level.sum(), t)
    got = Sigmoid(-1.0).weight(path, parameterisation.Eps(), t)
    torch.testing.assert_close(got, torch.sigmoid(-1.0 - level) * -slope, rtol=1e-6, atol=1e-9)


def test_sigmoid_on_flow_s_velocity_has_the_published_values():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    got = Sigmoid(-1.0).weight(Flow(), parameterisation.Velocity(), t)
    torch.testing.assert_close(got, torch.tensor([0.0814, 0.538, 0.215]).double(), rtol=2e-3, atol=0)


def test_edm_is_one_for_its_own_output_and_the_published_lambda_on_x0():
    for path in PATHS:
        t = times(path)
        close(EDMWeighting(0.5).weight(path, parameterisation.EDMPrecond(0.5), t), torch.ones_like(t))
    t = times(EDM())
    close(EDMWeighting(0.5).weight(EDM(), parameterisation.X0(), t), (t**2 + 0.25) / (0.5 * t) ** 2)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("weighting", [MinSNR(), Sigmoid(), EDMWeighting()], ids=repr)
def test_the_weighted_error_is_the_same_in_every_parameterisation(weighting, path):
    """w |output error|^2 for the outputs that mean one and the same wrong x0."""
    t = times(path)

    def loss(p):
        output_error = p.det(path, t) / path.sigma(t)  # of an error of -1 in x0
        return weighting.weight(path, p, t) * output_error**2

    for other in PARAMS:
        torch.testing.assert_close(loss(other), loss(parameterisation.X0()), rtol=1e-8, atol=0)


def test_uniform_is_one():
    t = times(Flow())
    assert torch.equal(UniformWeighting().weight(Flow(), parameterisation.V(), t), torch.ones_like(t))


@pytest.mark.parametrize("path", [Flow(), Trig()], ids=repr)
def test_min_snr_at_both_ends_is_its_limit(path):
    """At SNR 0: min(SNR, g) / SNR = 1 for eps, min(SNR, g) / (SNR + 1) = 0 for v, min(SNR, g) = 0 for x0."""
    zero, end = torch.zeros(1, dtype=torch.float64), torch.tensor([path.t1], dtype=torch.float64)
    for other, expected in ((parameterisation.Eps(), 1.0), (parameterisation.V(), 0.0), (parameterisation.X0(), 0.0)):
        at, before = (MinSNR().weight(path, other, t) for t in (end, end * (1 - 1e-9)))
        close(at, torch.full_like(at, expected))
        torch.testing.assert_close(at, before, rtol=1e-6, atol=1e-6)
    for other in (parameterisation.X0(), parameterisation.V(), parameterisation.Velocity()):
        at, near = (MinSNR(5.0).weight(path, other, t) for t in (zero, zero + 1e-9))
        torch.testing.assert_close(at, near, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighting", [MinSNR(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("name", ["eps", "v"])
def test_a_loss_at_zero_terminal_snr_is_finite(weighting, name):
    noise = training_noise(0, 0, range(16))
    data = Batch(noise.normal("x", (1, 8, 8)), {"y": noise.integers("y", 10)}, noise)
    f = Denoiser(tiny().model.build(), Flow(), build("diffusion.parameterisation", name))
    ((_, loss, _),) = Denoising(times=Point(1.0), weighting=weighting)({"net": f}, data)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in f.net.parameters() if p.grad is not None)
    # A fresh net says 0; v, which is -x0 there, has weight 0, and so has the end itself per unit of log SNR.
    assert (float(loss.detach()) > 0.5) == (name == "eps" and isinstance(weighting, MinSNR))


@pytest.mark.parametrize("bad", [lambda: MinSNR(0), lambda: EDMWeighting(-1)])
def test_wrong_numbers_are_refused(bad):
    with pytest.raises(UserError, match="must be in"):
        bad()
