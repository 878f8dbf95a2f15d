"""Renoise: denoise, then noise again."""

from __future__ import annotations

import pytest
import torch

from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.renoise import Renoise


def test_the_spread_it_makes_of_a_gaussian():
    """From pure noise x0 = m; noised to s its x0 is m + k z, k = alpha sigma std^2 / (alpha^2 std^2 + sigma^2)."""
    std, s, n = 0.6, 0.4, 20_000
    world = Gaussian(Flow(), torch.tensor([3.0]).double(), torch.tensor([std], dtype=torch.float64))
    noise = Noise(tuple(sample_seeds(0, n)))
    x = integrate(world, torch.zeros(n, 1, dtype=torch.float64), [1.0, s, 0.0], Renoise(), noise=noise)
    k = (1 - s) * s * std**2 / ((1 - s) ** 2 * std**2 + s**2)
    assert float(x.std()) == pytest.approx(k, rel=0.02)
    torch.testing.assert_close(x, 3 + k * noise.normal(0, (1,)).double(), rtol=0, atol=1e-12)


def test_one_step_draws_nothing():
    world = Gaussian(Flow(), torch.tensor([3.0]).double(), torch.tensor([0.6]).double())
    x = integrate(world, torch.randn(4, 1, dtype=torch.float64), [1.0, 0.0], Renoise())
    torch.testing.assert_close(x, torch.full_like(x, 3.0), rtol=0, atol=1e-12)


def test_other_seeds_give_other_samples_from_the_same_start():
    world = Gaussian(Flow(), torch.tensor([3.0]).double(), torch.tensor([0.6]).double())
    x = torch.zeros(2, 1, dtype=torch.float64)
    a, b = (integrate(world, x, [1.0, 0.5, 0.0], Renoise(), noise=Noise(seeds)) for seeds in ((1, 2), (3, 2)))
    assert not torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
