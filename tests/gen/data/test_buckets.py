"""Aspect-ratio buckets: the sizes that are published, the nearest one of each picture, and pictures in it."""

import math

import numpy as np
import pytest
from PIL import Image

from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.folder import Folder
from gen.data.lib.buckets import bucket_sizes, nearest_bucket
from gen.data.lib.crops import center_crop, fit, random_crop
from gen.data.lib.encoding import Encoding, encode

# SDXL (Podell et al. 2023, appendix I): the longest side that goes with each shorter one, height x width
SDXL = {512: 2048, 576: 1792, 640: 1600, 704: 1472, 768: 1344, 832: 1216, 896: 1152, 960: 1088, 1024: 1024}


def by_definition(size, step):
    """kohya's rule, read as: every side from half to twice the square's, with the longest other one that fits."""
    area, side = math.prod(size), math.isqrt(math.prod(size))
    sides = [n for n in range(step, 4 * side, step) if side / 2 <= n <= 2 * side]
    pairs = {(a, max(b for b in sides if a * b <= area)) for a in sides if any(a * b <= area for b in sides)}
    return pairs | {(b, a) for a, b in pairs} | {(side // step * step,) * 2}


@pytest.mark.parametrize(("size", "step"), [((1024, 1024), 64), ((512, 768), 64), ((64, 64), 8), ((100, 100), 8)])
def test_the_sizes_are_those_of_the_rule(size, step):
    sizes = bucket_sizes(size, step)
    assert set(sizes) == by_definition(size, step) and len(sizes) == len(set(sizes))
    assert all(h * w <= math.prod(size) for h, w in sizes) and {(w, h) for h, w in sizes} == set(sizes)
    assert [h / w for h, w in sizes] == sorted(h / w for h, w in sizes)


def test_sdxls_sizes_are_among_them():
    sizes = bucket_sizes((1024, 1024), 64)
    assert {pair for a, b in SDXL.items() for pair in [(a, b), (b, a)]} <= set(sizes)


def test_each_picture_goes_to_the_nearest_logarithm_of_its_ratio():
    sizes = bucket_sizes((64, 64), 8)
    draw = np.random.default_rng(0)
    widths, heights = draw.integers(1, 3000, 500), draw.integers(1, 3000, 500)
    chosen = nearest_bucket(widths, heights, sizes)
    for w, h, k in zip(widths, heights, chosen, strict=True):
        away = [abs(math.log(h / w) - math.log(a / b)) for a, b in sizes]
        assert away[k] == pytest.approx(min(away), abs=1e-12)
    assert sizes[nearest_bucket([500], [500], sizes)[0]] == (64, 64)
    assert not len(nearest_bucket([], [], sizes))
    both = ((32, 32), (64, 64))
    assert list(nearest_bucket([5], [5], both)) == [1], "the larger of two of one ratio"


def write(folder, shapes):
    for i, (height, width) in enumerate(shapes):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.mark.parametrize("crop", ["adm", "edm2", "random"])
def test_a_picture_is_cropped_to_its_bucket(crop, tmp_path):
    write(tmp_path, [(16, 16), (16, 40), (40, 16), (30, 20)])
    source = Folder(str(tmp_path), size=16, buckets=4, crop=crop, flip="double", holdout=0.0)
    data = source.open("train")
    assert source.shape == (3, 16, 16) and list(data.buckets[:4]) == list(data.buckets[4:])
    assert [tuple(data[i]["x"].shape[1:]) for i in range(4)] == [(16, 16), (8, 24), (24, 8), (20, 12)]
    rule = {"adm": fit, "edm2": center_crop, "random": lambda image, size: random_crop(image, size, 7)}[crop]
    for i in range(4):
        size = source.bucket_sizes[data.buckets[i]]
        shown = np.asarray(rule(Image.open(tmp_path / f"{i:02}.png"), size)).transpose(2, 0, 1) / 127.5 - 1
        for item, back in [(data.draw(i, 7), 1), (data.draw(i + 4, 7), -1)]:
            np.testing.assert_allclose(item["x"].numpy()[..., ::back], shown, atol=1e-6)
    assert data.bucket_counts() == {"8x24": 2, "16x16": 2, "20x12": 2, "24x8": 2}


def test_buckets_are_part_of_the_data_and_of_every_source_of_pictures(tmp_path):
    write(tmp_path / "a", [(16, 16), (16, 40), (40, 16)])
    prints = {Folder(str(tmp_path / "a"), 16, buckets=n, holdout=0.0).open("train").fingerprint for n in (None, 4, 8)}
    assert len(prints) == 3
    for name in ("zip", "table", "webdataset", "huggingface"):
        assert build("data", {"name": name, "path": "x", "size": 16, "buckets": "8"}).buckets == 8


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"buckets": 0}, "buckets = 0"),
        ({"buckets": 4, "size": None}, "need a size"),
        ({"buckets": 64}, "longer than the side"),
    ],
)
def test_buckets_that_cannot_be_are_one_line(fields, said, tmp_path):
    write(tmp_path, [(16, 16), (16, 16)])
    with pytest.raises(UserError, match=said) as error:
        Folder(str(tmp_path), **{"size": 16, **fields}).open("train")
    assert "\n" not in str(error.value)


def test_latents_of_them_are_refused(tmp_path):
    write(tmp_path / "photos", [(16, 16), (16, 40)] * 2)
    source = Folder(str(tmp_path / "photos"), 16, buckets=4)
    with pytest.raises(UserError, match="latents are of one size"):
        encode(source, tmp_path / "out", Encoding("kl"))
