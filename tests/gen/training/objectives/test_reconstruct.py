"""Reconstruction against closed forms: the divergence, principal components, reverse water-filling."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.autoencoder import MOMENTS
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import Flow
from gen.training.objectives import Batch
from gen.training.objectives.reconstruct import Reconstruction, kl_divergence
from tests.gen.tiny import tiny


class Linear(nn.Module):
    """An autoencoder of vectors, kept as [B, D, 1, 1]: linear both ways, with variances that do not depend on x."""

    def __init__(self, dim, latent, logvar=None):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.dim, self.latent = dim, latent
        self.encoder = nn.Parameter(torch.randn(latent, dim, generator=generator).double() / dim**0.5)
        self.decoder = nn.Parameter(torch.randn(dim, latent, generator=generator).double() / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(dim).double())
        self.logvar = nn.Parameter(torch.zeros(latent).double()) if logvar is None else torch.full((latent,), logvar)

    def latent_shape(self, x):
        return (self.latent, 1, 1)

    def forward(self, x, t, cond, *, s=None, tap=None):
        mean = (x.flatten(1) - self.bias) @ self.encoder.T
        moments = torch.cat([mean, self.logvar.to(mean).expand_as(mean)], 1)[..., None, None]
        tap(MOMENTS, lambda h: moments, x)
        noise = cond["posterior"].flatten(1) if "posterior" in cond else torch.zeros_like(mean)
        z = mean + (0.5 * self.logvar.to(mean)).exp() * noise
        return (z @ self.decoder.T + self.bias)[..., None, None]


@dataclass
class Given:
    """Noise that is given: as many rows as the batch has."""

    eps: torch.Tensor

    def normal(self, name, shape):
        return self.eps.reshape(-1, *shape)


def whitened(n, columns):
    """Columns of mean 0, variance 1 and covariance 0, exactly, so that a mean over rows is the expectation."""
    x = torch.randn(n, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.cat([torch.ones(n, 1).double(), x], 1))
    return q[:, 1:] * n**0.5


def least(net, objective, x, eps):
    """Train to the minimum; return (loss, divergence), each the sum over numbers, the mean over rows."""
    batch = Batch(x[..., None, None], {}, Given(eps))
    roles = {"net": Denoiser(net, Flow(), X0())}
    optim = torch.optim.LBFGS(net.parameters(), max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optim.zero_grad()
        _, loss, _ = next(iter(objective(roles, batch)))
        loss.backward()
        return loss

    for _ in range(3):
        optim.step(closure)
    _, _, logs = next(iter(objective(roles, batch)))
    return float(logs["reconstruction"].detach()) * x.shape[1], float(logs["kl"].detach())


def test_the_divergence_is_that_of_gaussians():
    cases = {(1.0, 0.0): 0.5, (0.0, -2.0): 0.567668, (0.5, -3.0): 1.149894}
    for (mean, logvar), expected in cases.items():
        moments = torch.tensor([mean, logvar]).reshape(1, 2, 1, 1)
        assert float(kl_divergence(moments)) == pytest.approx(expected, abs=1e-6)
    one = torch.cat([torch.ones(2, 32, 16, 16), torch.zeros(2, 32, 16, 16)], 1)
    assert kl_divergence(one).tolist() == [4096.0, 4096.0]


def test_a_linear_autoencoder_leaves_the_smallest_eigenvalues():
    """Squared error without noise: principal components; the bias is the mean."""
    variances, mean = torch.tensor([4.0, 1.0, 0.25, 0.04]).double(), torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double())
    x = whitened(64, 4) * variances.sqrt() @ turn + mean
    net = Linear(4, 2, logvar=-60.0)
    error, _ = least(net, Reconstruction(distance="l2", kl=0.0), x, torch.zeros(64, 2).double())
    assert error == pytest.approx(0.29, rel=1e-5)
    kept = (net.decoder @ net.encoder).detach()
    largest = turn[:2].T @ turn[:2]
    torch.testing.assert_close(kept, largest, rtol=1e-3, atol=1e-3)


def test_a_gaussian_autoencoder_fills_from_the_largest_variance_down():
    """Squares and beta times the divergence: reverse water-filling at beta / 2; the smallest one collapses."""
    variances = torch.tensor([4.0, 1.0, 0.25, 0.04]).double()
    both = whitened(64, 8)
    x, eps = both[:, :4] * variances.sqrt(), both[:, 4:]
    error, divergence = least(Linear(4, 4), Reconstruction(distance="l2", kl=0.2), x, eps)
    assert error == pytest.approx(0.34, rel=1e-4) and divergence == pytest.approx(3.45388, rel=1e-4)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="Reconstruction trains an autoencoder, such as kl, and this is a DiTNet"):
        Reconstruction().roles(tiny().model.build(), None)
