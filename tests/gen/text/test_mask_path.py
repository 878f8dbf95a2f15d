"""Masking schedules: their rates, weights and limits, and what corruption does to tokens."""

from __future__ import annotations

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.text.mask_path import (
    Cosine,
    CosineSquared,
    Geometric,
    Linear,
    Logarithm,
    LogLinear,
    Square,
    SquareRoot,
    corrupt,
)

PATHS = [
    LogLinear(),
    LogLinear(eps=0.0),
    Cosine(),
    CosineSquared(),
    Linear(),
    Linear(0.1, 5.0),
    Geometric(),
    Square(),
    SquareRoot(),
    Logarithm(),
]
# mask(0) and mask(1): MDLM's eps keeps a little text at t = 1, and total noise is never quite 0 or infinite
LIMITS = {
    "LogLinear": (0.0, 0.999),
    "Cosine": (0.0, 0.999),
    "CosineSquared": (0.0, 0.999),
    "Linear": (0.0, 1 - math.exp(-10)),
    "Geometric": (1 - math.exp(-1e-3), 1 - math.exp(-10)),
    "Square": (0.0, 1.0),
    "SquareRoot": (0.0, 1.0),
    "Logarithm": (0.0, 1.0),
}


def times(n=61):
    return torch.linspace(0.011, 0.993, n, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_rates_are_those_of_autograd_and_the_weight_is_rate_over_mask(path):
    t = times().requires_grad_()
    mask = path.masked_fraction(t)
    (rate,) = torch.autograd.grad(mask.sum(), t)
    torch.testing.assert_close(path.rate(t.detach()), rate, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(path.weight(t.detach()), rate / mask.detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_shares_rise_inside_of_0_and_1_in_the_shape_and_precision_of_t(path):
    mask = path.masked_fraction(times())
    assert bool((mask.diff() > 0).all()) and float(mask.min()) > 0 and float(mask.max()) < 1
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.full((2, 3), 0.5)):
        for value in (path.masked_fraction(t), path.rate(t), path.weight(t)):
            assert value.shape == t.shape and value.dtype == t.dtype


@pytest.mark.parametrize("name", names("text.mask_path"))
def test_the_limits_are_none_and_all(name):
    low, high = build("text.mask_path", name).masked_fraction(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    assert (low, high) == pytest.approx(LIMITS[type(build("text.mask_path", name)).__name__], abs=1e-12)


def test_every_schedule_is_named_once():
    assert {spec_of(path)["name"] for path in PATHS} == set(names("text.mask_path"))
    assert not set(names("text.mask_path")) & set(names("diffusion.path"))


@pytest.mark.parametrize(
    ("path", "t", "mask", "weight"),
    [
        (LogLinear(), 0.25, 0.24975, 4.0),
        (Square(), 0.5, 0.25, 4.0),
        (SquareRoot(), 0.25, 0.5, 2.0),
        (Cosine(eps=0.0), 0.5, 1 - math.sqrt(0.5), math.pi / 2 * math.sqrt(0.5) / (1 - math.sqrt(0.5))),
        (CosineSquared(eps=0.0), 0.5, 0.5, math.pi),
        (Linear(0.0, 2.0), 0.5, 1 - math.exp(-1), 2 / (math.e - 1)),
        (Logarithm(), 1.0, 1.0, 1 / (2 * math.log(2))),
    ],
    ids=repr,
)
def test_known_values(path, t, mask, weight):
    t = torch.tensor(t, dtype=torch.float64)
    assert float(path.masked_fraction(t)) == pytest.approx(mask, rel=1e-12)
    assert float(path.weight(t)) == pytest.approx(weight, rel=1e-12)


def test_mdlms_cosine_is_published_by_its_total_noise():
    """sigma = -log(eps + (1 - eps) cos(pi t / 2)), and mask = 1 - exp(-sigma)."""
    t, eps = times(), 1e-3
    sigma = -torch.log(eps + (1 - eps) * torch.cos(math.pi / 2 * t))
    torch.testing.assert_close(Cosine(eps).masked_fraction(t), -torch.expm1(-sigma), rtol=1e-12, atol=1e-14)


# Corruption


def test_tokens_are_masked_where_their_number_is_below_the_share():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    u = torch.tensor([[0.0, 0.4, 0.6, 0.9], [0.0, 0.4, 0.6, 0.9]])
    made = corrupt(tokens, torch.tensor([0.5, 0.0]), u, 9)
    assert made.tolist() == [[9, 9, 3, 4], [5, 6, 7, 8]]
    each = torch.tensor([[0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    assert corrupt(tokens, each, u, 9).tolist() == [[1, 9, 9, 9], [9, 9, 7, 8]]
    prompt_or_pad = torch.tensor([[True, False, True, False], [False, True, False, False]])
    assert corrupt(tokens, torch.ones(2), u, 9, prompt_or_pad).tolist() == [[1, 9, 3, 9], [9, 6, 9, 9]]


@pytest.mark.parametrize("path", [LogLinear(), Cosine()], ids=repr)
def test_the_share_of_masks_is_that_of_the_path(path):
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    tokens = torch.zeros(3, 40_000, dtype=torch.int64)
    u = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = (corrupt(tokens, path.masked_fraction(t), u, 1) == 1).double().mean(1)
    torch.testing.assert_close(share, path.masked_fraction(t), rtol=0, atol=4 * 0.5 / 200)


def test_numbers_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"\[2\].*\[2, 3\]"):
        corrupt(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2), torch.zeros(2), 9)
