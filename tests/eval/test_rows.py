"""The same bits for any batch size, order, and merging."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.features.digits_cnn import DigitsCNN
from gen.eval.features.pixels import Pixels
from gen.eval.rows import IndexedRows

N = 420
IMAGES = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 10


def filled(extract, order: torch.Tensor, sizes: list[int]) -> IndexedRows:
    rows = IndexedRows(("features", "labels"))
    for part in order.split(sizes):
        rows.update(part, features=extract(IMAGES[part]), labels=LABELS[part])
    return rows


@pytest.mark.parametrize("extract", [Pixels().load(), DigitsCNN().load()], ids=["pixels", "digits_cnn"])
def test_bits_depend_on_nothing_but_the_samples(extract) -> None:
    straight = torch.arange(N)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    whole = filled(extract, straight, [N])
    others = {
        "small batches": filled(extract, straight, [7] * 60),
        "uneven batches": filled(extract, straight, [1, 250, 3, 166]),
        "shuffled": filled(extract, shuffled, [33] * 12 + [24]),
        "other micro-batches of the extractor": filled(extract, straight.flip(0), [251, 169]),
    }
    halves = filled(extract, shuffled[:100], [100]), filled(extract, shuffled[100:], [320])
    halves[1].merge_state(halves[0])
    others["merged"] = halves[1]
    for name, other in others.items():
        assert torch.equal(other.rows("features"), whole.rows("features")), name
        assert torch.equal(other.compute()["labels"], LABELS), name


def test_reset_forgets_everything() -> None:
    rows = filled(Pixels(), torch.arange(N), [N])
    rows.reset()
    with pytest.raises(UserError, match="no samples"):
        rows.rows("features")
    rows.update(torch.arange(3), features=torch.ones(3, 2), labels=LABELS[:3])
    assert torch.equal(rows.compute()["features"], torch.ones(3, 2))


def test_refuses_missing_and_repeated_samples() -> None:
    rows = IndexedRows(("features",))
    rows.update(torch.tensor([0, 1, 3]), features=torch.ones(3, 2))
    with pytest.raises(UserError, match="sample 2 is missing"):
        rows.compute()
    rows.update(torch.tensor([2, 1]), features=torch.ones(2, 2))
    with pytest.raises(UserError, match="sample 1 came twice"):
        rows.compute()
    with pytest.raises(UserError, match=r"index \[2\] torch.int64 for 3 features"):
        rows.update(torch.tensor([4, 5]), features=torch.ones(3, 2))


def test_names_the_sample_whose_features_are_not_finite() -> None:
    with pytest.raises(UserError, match="the features of sample 8 are not finite"):
        IndexedRows(("features",)).update(torch.tensor([7, 8]), features=torch.tensor([[0.0, 1], [torch.nan, 0]]))


def test_refuses_features_of_different_widths() -> None:
    rows = IndexedRows(("features",))
    rows.update(torch.arange(2), features=torch.ones(2, 64))
    rows.update(torch.arange(2, 4), features=torch.ones(2, 32))
    with pytest.raises(UserError, match=r"features of different shapes: \[32\], \[64\]"):
        rows.compute()
