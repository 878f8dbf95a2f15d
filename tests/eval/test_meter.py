"""The same bits for any batch size, order, and merging."""

from functools import partial

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.features.digits_cnn import DigitsCNN
from gen.eval.features.pixels import Pixels
from gen.eval.meter import Meter
from gen.eval.metrics.frechet import Frechet
from gen.eval.metrics.kid import KID

N = 420
IMAGES = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def meter(extract) -> Meter:
    reference = extract(IMAGES.flip(0)[:200] // 2)
    return Meter(extract, {"fid": partial(Frechet(), reference=reference), "kid": partial(KID(), reference=reference)})


def filled(extract, order: torch.Tensor, sizes: list[int]) -> Meter:
    made = meter(extract)
    for part in order.split(sizes):
        made.update(part, IMAGES[part])
    return made


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
        assert torch.equal(other.rows(), whole.rows()), name
        assert other.compute() == whole.compute(), name  # every bit of value and error


def test_reset_forgets_everything() -> None:
    made = filled(Pixels(), torch.arange(N), [N])
    before = made.compute()
    made.reset()
    with pytest.raises(UserError, match="no samples"):
        made.rows()
    made.update(torch.arange(N), IMAGES)
    assert made.compute() == before


def test_refuses_missing_and_repeated_samples() -> None:
    made = meter(Pixels())
    made.update(torch.tensor([0, 1, 3]), IMAGES[:3])
    with pytest.raises(UserError, match="sample 2 is missing"):
        made.compute()
    made.update(torch.tensor([2, 1]), IMAGES[:2])
    with pytest.raises(UserError, match="sample 1 came twice"):
        made.compute()
    with pytest.raises(UserError, match=r"index \[2\]"):
        made.update(torch.tensor([4, 5]), IMAGES[:3])


def test_names_the_sample_whose_features_are_not_finite() -> None:
    made = Meter(lambda images: images.float().flatten(1) / images.float().flatten(1).amax(1, keepdim=True), {})
    with pytest.raises(UserError, match="features of sample 8 are not finite"):
        made.update(torch.tensor([7, 8]), torch.stack([IMAGES[0], torch.zeros_like(IMAGES[0])]))


def test_refuses_features_of_different_widths() -> None:
    made = Meter(Pixels(), {})
    made.update(torch.arange(2), IMAGES[:2])
    made.update(torch.arange(2, 4), IMAGES[:2, :, :4])
    with pytest.raises(UserError, match="features of different shapes"):
        made.compute()
