"""The laws of extractors, for every file of the folder; one with weights of its own needs a line in WEIGHTS."""

import re

import pytest
import torch
from safetensors.torch import save_file

from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.eval.features.lib.inception_net import seeded_weights
from tests.eval.test_clip import small_clip
from tests.eval.test_dinov2 import small_dinov2

WEIGHTS = {  # what writes them into a folder, and the file's name
    "clip": (small_clip, ""),
    "dinov2": (small_dinov2, ""),
    "inception": (lambda folder: save_file(seeded_weights(), folder / "a.safetensors"), "a.safetensors"),
}
SHAPES = {"digits_cnn": (1, 8, 8)}  # of the pictures that an extractor takes, where it does not take all


@pytest.fixture(scope="module", params=names("eval.features"))
def case(request, tmp_path_factory):
    """A spec, and pictures for it."""
    spec = {"name": request.param}
    if request.param in WEIGHTS:
        folder = tmp_path_factory.mktemp(request.param)
        write, file = WEIGHTS[request.param]
        write(folder)
        spec |= {"path": str(folder / file)}
    given = build("eval.features", spec)
    if hasattr(given, "batch"):
        given = build("eval.features", {**spec, "batch": 2})
    shape = SHAPES.get(request.param, (3, 21, 24))
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return given, given.load(), images


def test_its_identity_is_stated(case) -> None:
    spec, extractor, _ = case
    assert build("eval.features", spec_of(spec)) == spec and hash(spec) is not None
    assert extractor.name and re.fullmatch(r"|[0-9a-f]{64}", extractor.sha256)
    assert extractor.name.split()[0] == spec_of(spec)["name"]


def test_a_row_is_a_function_of_its_image_to_the_bit(case) -> None:
    _, extractor, images = case
    rows = extractor(images)
    assert rows.dtype == torch.float32 and rows.ndim == 2 and len(rows) == 3 and rows.device.type == "cpu"
    assert bool(rows.isfinite().all()) and not rows.requires_grad and float(rows.std(0).max()) > 0
    order = torch.tensor([2, 0, 1])
    assert torch.equal(extractor(images[order]), rows[order])
    assert torch.equal(torch.cat([extractor(part) for part in images.split(1)]), rows)
    if images.shape[1] == 3 and rows.shape[1] != images[0].numel():  # grey pictures are repeated
        assert torch.equal(extractor(images[:1, :1]), extractor(images[:1, :1].repeat(1, 3, 1, 1)))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(extractor(images), rows)  # one name, one precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_else_it_offers_fits_its_features(case) -> None:
    _, extractor, images = case
    rows = extractor(images)
    if hasattr(extractor, "head"):
        scores = extractor.head(rows)
        assert scores.ndim == 2 and len(scores) == 3 and scores.dtype == torch.float32 and not scores.requires_grad
    if hasattr(extractor, "outputs"):
        both = extractor.outputs(images)
        assert torch.equal(both["features"], rows) and torch.equal(both["spatial"], extractor.spatial(images))
    if hasattr(extractor, "text"):
        texts = extractor.text(["a cat", "dog"])
        assert texts.shape == (2, rows.shape[1])
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_what_it_cannot_take_is_refused_in_one_line(case) -> None:
    spec, extractor, images = case
    if spec_of(spec)["name"] == "pixels":  # takes all
        return
    for wrong in (images.float(), images[:, :1].repeat(1, 4, 1, 1), images[0]):
        with pytest.raises(UserError, match=r"takes uint8 images \[B, ") as error:
            extractor(wrong)
        assert "\n" not in str(error.value)
