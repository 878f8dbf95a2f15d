"""Distances to the nearest training image by hand."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.metrics.nearest import Nearest


def test_is_the_median_of_the_smallest_distances() -> None:
    train = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    samples = torch.tensor([[3.0, 4.0], [10.0, 1.0], [-2.0, 0.0]])  # at 5, 1 and 2
    assert Nearest()(samples, train).value == 2.0
    distances, index = Nearest().pairs(samples, train)
    assert distances.tolist() == [5.0, 1.0, 2.0] and index.tolist() == [0, 1, 0]


def test_a_copy_is_at_exactly_zero() -> None:
    train = torch.rand(300, 192)
    found = Nearest()(train[:50], train)
    assert found.value == 0.0 and found.se == 0.0


def test_standard_error_is_the_spread_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [Nearest()(torch.rand(400, 1, generator=generator), torch.zeros(1, 1)) for _ in range(200)]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    assert float(values.std()) == pytest.approx(0.5 / 400**0.5, rel=0.2)  # of the median of uniform numbers
    assert sum(e.se for e in found) / 200 == pytest.approx(float(values.std()), rel=0.2)


def test_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(UserError, match=r"\[4, 3\] against \[4, 2\]"):
        Nearest()(torch.zeros(4, 3), torch.zeros(4, 2))
