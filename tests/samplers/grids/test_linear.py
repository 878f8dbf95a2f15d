"""Evenly spaced times."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.path import EDM, Flow
from gen.samplers.grids.linear import Linear


def test_it_is_even():
    assert Linear().times(Flow(), 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    torch.testing.assert_close(Linear(0.5).times(EDM(), 2), torch.tensor([40.0, 20.0, 0.0], dtype=torch.float64))


def test_the_last_step_may_have_a_size_of_its_own():
    times = Linear(last=0.04).times(EDM(), 4) / 80
    torch.testing.assert_close(times, torch.tensor([1.0, 0.68, 0.36, 0.04, 0.0], dtype=torch.float64))
    assert Linear(last=0.04).times(Flow(), 1).tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match=r"last = 0.6; it must be in \(0, 0.5\)"):
        Linear(0.5, last=0.6)


@pytest.mark.parametrize("start", [0.0, 1.5, -1.0])
def test_wrong_starts_are_refused(start):
    with pytest.raises(UserError, match=r"must be in \(0, 1\]"):
        Linear(start)
