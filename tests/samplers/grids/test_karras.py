"""The grid of EDM against the numbers of its equation."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.path import EDM, VP, Flow
from gen.samplers.grids.karras import Karras


def test_it_is_equation_5():
    times = Karras().times(EDM(), 18)
    i = torch.arange(18, dtype=torch.float64)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(times[:-1], published, rtol=1e-12, atol=0)
    assert float(times[0]) == pytest.approx(80, rel=1e-12)
    assert float(times[1]) == pytest.approx(57.586, abs=1e-3)
    assert float(times[-2]) == pytest.approx(0.002, rel=1e-12)


@pytest.mark.parametrize("path", [Flow(), VP()], ids=repr)
def test_on_any_path_it_is_the_same_noise_levels(path):
    times = Karras(0.01, 20.0).times(path, 9)[:-1]
    levels = Karras(0.01, 20.0).times(EDM(), 9)[:-1]
    torch.testing.assert_close((-path.lam(times)).exp(), levels, rtol=1e-9, atol=0)


def test_it_starts_where_the_path_does():
    start = float(Karras(sigma_max=80.0).times(EDM(sigma_max=50.0), 18)[0])
    assert start == pytest.approx(50, rel=1e-14)
    assert start <= 50


def test_a_path_without_that_little_noise_is_refused():
    with pytest.raises(UserError, match=r"sigma_min = 0.5; it must be below this path's top level, 0.25"):
        Karras(sigma_min=0.5).times(EDM(sigma_max=0.25), 4)


@pytest.mark.parametrize("bad", [{"sigma_min": 0}, {"sigma_min": 3, "sigma_max": 2}, {"rho": 0}])
def test_wrong_numbers_are_refused(bad):
    with pytest.raises(UserError, match="it must be in"):
        Karras(**bad)
