"""Classifier-free guidance on a mixture whose answer is known."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Mixture
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler

GRID = torch.linspace(1, 0, 11, dtype=torch.float64)


def world():
    means = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    return Mixture(Flow(), means, torch.tensor([0.3, 0.4], dtype=torch.float64), halves, torch.tensor([0, 1]))


def ask():
    return torch.linspace(-2, 3, 7, dtype=torch.float64)[:, None], {"y": torch.tensor([0, 1, 0, 1, 0, 1, 0])}


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0, -1.0])
def test_it_is_u_plus_scale_times_c_minus_u(scale):
    f, (x, cond), t = world(), ask(), torch.tensor(0.5, dtype=torch.float64)
    c, u, got = f(x, t, cond), f(x, t), CFG(scale)(f, GRID)(x, t, cond)
    torch.testing.assert_close(got.x0, u.x0 + scale * (c.x0 - u.x0), rtol=1e-14, atol=0)
    torch.testing.assert_close(got.eps, u.eps + scale * (c.eps - u.eps), rtol=1e-14, atol=0)


def test_guided_scores_are_those_of_the_sharpened_classifier():
    """score + (scale - 1) grad log p(y | x): the identity the method is named after."""
    f, (x, cond), t, scale = world(), ask(), torch.tensor(0.5, dtype=torch.float64), 3.0
    x.requires_grad_()
    log_class = (f.log_prob(x, t, cond) - f.log_prob(x, t)).sum()
    classifier = torch.autograd.grad(log_class, x)[0]
    expected = f.score(x, t, cond) + (scale - 1) * classifier
    got = -CFG(scale)(f, GRID)(x, t, cond).eps / f.path.sigma(t)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_it_needs_a_condition():
    x, _ = ask()
    for nothing in (None, {}):
        with pytest.raises(UserError, match="CFG needs a condition"):
            CFG(2.0)(world(), GRID)(x, torch.tensor(0.5, dtype=torch.float64), nothing)


def test_the_interval_is_open_below_and_closed_above():
    f, (x, cond), t = world(), ask(), torch.tensor(0.5, dtype=torch.float64)  # sigma / alpha = 1
    plain = f(x, t, cond).x0
    assert not torch.equal(CFG(3.0, (0.5, 1.0))(f, GRID)(x, t, cond).x0, plain)
    assert torch.equal(CFG(3.0, (1.0, 2.0))(f, GRID)(x, t, cond).x0, plain)


def test_pure_noise_has_an_infinite_level():
    f, (x, cond), t = world(), ask(), torch.ones((), dtype=torch.float64)
    plain = f(x, t, cond).x0
    assert torch.equal(CFG(3.0, (0.0, 1e9))(f, GRID)(x, t, cond).x0, plain)
    assert not torch.equal(CFG(3.0)(f, GRID)(x, t, cond).x0, plain)


def test_more_guidance_puts_more_samples_in_their_class():
    f, x = world(), torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    cond = {"y": torch.zeros(101, dtype=torch.int64)}
    grid = torch.linspace(1, 0, 33, dtype=torch.float64)
    ends = [integrate(CFG(scale)(f, GRID), x, grid, Euler(), cond=cond) for scale in (0.0, 1.0)]
    share = [float((end > 0.5).double().mean()) for end in ends]
    assert share[0] == pytest.approx(0.5, abs=0.1)
    assert share[1] == 1


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_wrong_intervals_are_refused(interval):
    with pytest.raises(UserError, match="0 <= low < high"):
        CFG(interval=interval)


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 7), (1.0, 7), (2.0, 14)])
def test_both_from_one_call_cost_no_more_than_apart(scale, rows):
    f, (x, cond), t = CountingDenoiser(world()), ask(), torch.tensor(0.5, dtype=torch.float64)
    CFG(scale, batched=True)(f, GRID)(x, t, cond)
    assert f.rows == rows
