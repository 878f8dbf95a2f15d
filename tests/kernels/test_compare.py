"""The measures of kernel tests: an error's ratio to another's, and memory that shows who reads it unwritten."""

import pytest
import torch

from gen.diffusion.noise import Noise
from tests.kernels.compare import error_ratio, poisoned_memory


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_error_ratio():
    exact = f64(1.0, 2.0)
    eager = torch.tensor([1.0, 2.0 + 1e-5])
    ours = torch.tensor([1.0 + 3e-5, 2.0])
    assert error_ratio(ours, eager, exact) == pytest.approx(3, rel=0.05)
    assert error_ratio(exact.float(), exact.float(), exact) == 0
    one_ulp = torch.tensor([1.0, 2.0 + 2**-22])
    assert error_ratio(one_ulp, exact.float(), exact) == pytest.approx(1)


def test_poisoned_memory_shows_what_was_never_written():
    with poisoned_memory():
        assert bool(torch.empty(3).isnan().all())
        assert bool(torch.empty_like(torch.zeros(3)).isnan().all())
        assert bool(torch.zeros(2).new_empty(3).isnan().all())
        assert bool(torch.empty_strided((2, 2), (2, 1)).isnan().all())
        assert torch.empty(2, dtype=torch.int64).tolist() == [torch.iinfo(torch.int64).max] * 2
        assert torch.empty(2, dtype=torch.bool).tolist() == [True, True]
        assert bool(torch.empty(2, dtype=torch.complex64).isnan().all())
        assert bool(torch.isfinite(Noise((1, 2)).normal("x", (3,))).all())
        assert not torch.zeros(3).isnan().any()


def test_poison_is_gone_after_an_error():
    before = torch.empty
    with pytest.raises(ZeroDivisionError), poisoned_memory():
        _ = 1 / 0
    assert torch.empty is before
