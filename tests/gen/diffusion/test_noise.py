"""Randomness that belongs to the sample."""

from __future__ import annotations

import math

import pytest
import torch

from gen.diffusion.noise import Noise, derive, sample_seeds, training_noise


def test_draws_never_change():
    """Golden numbers: published samples and half-done trainings depend on them."""
    assert derive("sample", 0, 0) == 4667277444736951684
    assert derive("train", 3, 41, 7) == 7257370747406755487
    noise = Noise(tuple(sample_seeds(0, 2)))
    assert noise.normal(0, (3,)).flatten().tolist() == pytest.approx(
        [-1.8007721, 0.0653977, -1.2994819, -0.292444, 0.2616514, -0.002712], abs=1e-6
    )
    assert noise.uniform("t").tolist() == [0.47432095298861165, 0.1827482732530146]
    assert noise.integers("y", 10).tolist() == [0, 6]


def test_a_sample_does_not_know_its_batch():
    seeds = sample_seeds(5, 8)
    batch = Noise(tuple(seeds))
    for i in (0, 3, 7):
        alone = Noise((seeds[i],))
        assert torch.equal(alone.normal("x", (2, 4, 4))[0], batch.normal("x", (2, 4, 4))[i])
        assert torch.equal(alone.uniform("t")[0], batch.uniform("t")[i])
        assert torch.equal(alone.integers("y", 9)[0], batch.integers("y", 9)[i])


def test_asking_twice_and_in_any_order_changes_nothing():
    noise = Noise((1, 2))
    first = noise.normal("a", (5,))
    noise.normal("b", (7,))
    torch.randn(3)
    assert torch.equal(noise.normal("a", (5,)), first)


def test_names_and_seeds_give_different_draws():
    noise = Noise((1, 2))
    assert not torch.equal(noise.normal(0, (8,)), noise.normal(1, (8,)))
    assert not torch.equal(noise.normal(0, (8,)), noise.normal("0", (8,)))
    assert not torch.equal(noise.normal(0, (8,))[0], noise.normal(0, (8,))[1])
    assert len({derive(i) for i in range(10_000)}) == 10_000
    assert derive(1, 23) != derive(12, 3)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Noise((1,)).normal("x", (4,))
    assert torch.equal(torch.get_rng_state(), before)


def test_distributions():
    noise = Noise(tuple(range(20_000)))
    n, u, k = noise.normal("x", (4,)), noise.uniform("t"), noise.integers("y", 7)
    assert n.dtype == torch.float32
    assert u.dtype == torch.float64
    assert k.dtype == torch.int64
    assert float(n.mean()) == pytest.approx(0, abs=5 / math.sqrt(80_000))
    assert float(n.std()) == pytest.approx(1, abs=0.015)
    assert float(torch.corrcoef(n.T).triu(1).abs().max()) < 5 / math.sqrt(20_000)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    grid = (torch.arange(20_000) + 0.5) / 20_000
    assert float((u.sort().values - grid).abs().max()) < 1.95 / math.sqrt(20_000)  # Kolmogorov, 0.1 %
    expected = 20_000 / 7
    assert float(((k.bincount(minlength=7) - expected) ** 2 / expected).sum()) < 22.5  # chi square, 6 d.o.f., 0.1 %


def test_sample_seeds():
    assert sample_seeds(0, 3, start=2) == sample_seeds(0, 5)[2:]
    assert sample_seeds([7, 8, 9], 2, start=1) == [8, 9]
    assert sample_seeds(0, 3) != sample_seeds(1, 3)


def test_training_noise_depends_on_seed_step_and_place_only():
    assert training_noise(0, 5, range(4, 6)).seeds == training_noise(0, 5, range(6)).seeds[4:]
    seeds = {training_noise(seed, step, [i]).seeds for seed in range(3) for step in range(3) for i in range(3)}
    assert len(seeds) == 27
