"""Sequences: their laws, and what the exact denoiser and fixed linear ones reach."""

import pytest
import torch

from gen.config.errors import UserError
from gen.data.sequences import Sequences
from gen.diffusion.path import Flow
from gen.diffusion.worlds import Correlated, CorrelatedMixture


def losses(data, n=400):
    """Mean squared errors of x0 at 8 middle times: the exact denoiser's, the best fixed linear one's, one by one's."""
    exact, linear, alone = 0.0, 0.0, 0.0
    x0 = data.world(Flow()).sample(n, torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, one = data.covariances().mean(0), torch.eye(data.length, dtype=torch.float64)
    for t in (torch.arange(8, dtype=torch.float64) + 0.5) / 8:
        exact += float((data.world(Flow())((1 - t) * x0 + t * noise, t).x0 - x0).square().mean()) / 8
        total = (1 - t) ** 2 * mean + t**2 * one
        linear += float((mean - (1 - t) ** 2 * mean @ torch.linalg.solve(total, mean)).trace()) / len(one) / 8
        alone += float((t**2 * mean.diagonal() / total.diagonal()).mean()) / 8
    return exact, linear, alone


def test_only_a_smooth_sequence_is_best_read_by_one_convolution():
    exact, linear, alone = losses(Sequences("smooth", 32))
    assert exact == pytest.approx(0.2978, abs=0.006) and linear == pytest.approx(0.2978, abs=1e-4)
    assert alone == pytest.approx(0.5, abs=1e-9)
    exact, linear, alone = losses(Sequences("periodic", 64))
    assert exact == pytest.approx(0.341, abs=0.01) and linear == pytest.approx(0.4339, abs=1e-4)
    assert alone == pytest.approx(0.5, abs=1e-9)
    exact, linear, _ = losses(Sequences("permuted", 32))
    assert exact < linear - 0.02


def test_the_exact_denoiser_is_the_score_of_a_sum_of_gaussians():
    draw = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 4, 4, generator=draw, dtype=torch.float64)
    world = CorrelatedMixture(Flow(), roots @ roots.mT + 0.1 * torch.eye(4))
    x = torch.randn(5, 4, generator=draw, dtype=torch.float64).requires_grad_()
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    totals = ((1 - t) ** 2)[:, None, None, None] * world.covariances + (t**2)[:, None, None, None] * torch.eye(4)
    known = torch.linalg.solve(totals, x[:, None, :, None])[..., 0]  # [B, K, D]
    each = -((known * x[:, None]).sum(-1) + totals.logdet()) / 2
    score = torch.autograd.grad(each.logsumexp(1).sum(), x)[0]
    found = world(x.detach(), t)
    torch.testing.assert_close(found.eps, -t[:, None] * score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((1 - t)[:, None] * found.x0 + t[:, None] * found.eps, x.detach())
    alone = Correlated(Flow(), torch.zeros(4).double(), world.covariances[0])(x.detach(), t)
    torch.testing.assert_close(CorrelatedMixture(Flow(), world.covariances[:1])(x.detach(), t), alone)


def test_items_are_pictures_of_one_row_and_their_covariance_is_the_law_s():
    data = Sequences("permuted", 8, n=20_000)
    items = data.open("train").x
    assert items.shape == (16_000, 1, 1, 8) and data.shape == (1, 1, 8)
    torch.testing.assert_close(items.flatten(1).T.cov(), data.covariances().mean(0).float(), rtol=0, atol=0.05)
    with pytest.raises(UserError, match=r"Sequences\.length 7"):
        Sequences(length=7)
