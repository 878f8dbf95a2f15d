"""The field's crops, to the bit against their formulas in PIL; random ones are a function of (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from PIL import Image

from gen.data.folder import Folder
from gen.data.lib.crops import center_crop, fit, random_crop
from gen.training.stream import ShuffledStream

SHAPES = [(64, 64), (500, 375), (375, 500), (130, 97), (63, 200), (33, 64), (20, 90), (257, 256)]
BOX, BICUBIC, LANCZOS = Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def covered(image, side):
    """Halved by BOX while the shorter side is twice as long, then BICUBIC (guided-diffusion)."""
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(n // 2 for n in image.size), BOX)
    scale = side / min(image.size)
    return np.array(image.resize(tuple(round(n * scale) for n in image.size), BICUBIC))


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_squares_are_those_of_the_published_tools(shape, side):
    image = noise(*shape)
    scaled = covered(image, side)
    top, left = ((n - side) // 2 for n in scaled.shape[:2])
    assert (np.array(fit(image, (side, side))) == scaled[top : top + side, left : left + side]).all()  # ADM

    pixels, short = np.array(image), min(shape)
    (h, w), half = pixels.shape[:2], short
    square = pixels[(h - half) // 2 : (h + half) // 2, (w - half) // 2 : (w + half) // 2]
    theirs = np.array(Image.fromarray(square).resize((side, side), LANCZOS))
    assert (np.array(center_crop(image, (side, side))) == theirs).all()  # EDM2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_crop_is_a_part_of_the_scaled_picture(shape):
    image, side = noise(*shape), 32
    sides = {scaled: covered(image, scaled) for scaled in range(side, 41)}  # 32 to 32 / .8
    seen = set()
    for key in range(4):
        part = np.array(random_crop(image, (side, side), key))
        windows = {s: np.lib.stride_tricks.sliding_window_view(x, (side, side, 3)) for s, x in sides.items()}
        hits = [s for s, window in windows.items() if (window == part).all((-1, -2, -3)).any()]
        assert hits
        seen.update(hits)
        assert (part == np.array(random_crop(image, (side, side), key))).all()
    assert len(seen) >= 2


@pytest.mark.parametrize("crop", [fit, center_crop, lambda image, size: random_crop(image, size, 3)])
def test_crops_of_other_shapes_have_them_and_keep_proportions(crop):
    ramp = Image.fromarray(np.add.outer(np.arange(120), np.arange(180)).astype(np.float32) / 2).convert("L")
    image = np.array(crop(ramp, (16, 40))).astype(float)
    assert image.shape == (16, 40)
    down, right = np.diff(image, axis=0).mean(), np.diff(image, axis=1).mean()
    assert abs(down - right) < 0.1 and down > 1


@pytest.fixture
def bars(tmp_path):
    for i in range(12):
        noise(24 + i, 20).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_draws_are_of_seed_epoch_and_index(bars):
    data = Folder(str(bars), 16, crop="random", flip="random", holdout=0.0).open("train")
    epochs = [
        {stream.row(p): stream[p]["x"] for p in range(12 * epoch, 12 * epoch + 12)}
        for stream, epoch in [(ShuffledStream(data, 5), 0), (ShuffledStream(data, 5), 1), (ShuffledStream(data, 6), 0)]
    ]
    again = ShuffledStream(data, 5)
    assert all(torch.equal(again[p]["x"], epochs[1][again.row(p)]) for p in (23, 12, 17))  # in any order
    assert sum(torch.equal(epochs[0][i], epochs[1][i]) for i in range(12)) < 3
    assert sum(torch.equal(epochs[0][i], epochs[2][i]) for i in range(12)) < 3
    plain = Folder(str(bars), 16, holdout=0.0).open("train")
    assert all(torch.equal(data[i]["x"], plain[i]["x"]) for i in range(12))  # evaluation draws nothing


def test_a_coin_mirrors_half_of_the_pictures(bars):
    data, plain = (Folder(str(bars), 16, flip=f, holdout=0.0).open("train") for f in ("random", "no"))
    x = [data.draw(i, key)["x"] for key in range(8) for i in range(12)]
    mirrored = [torch.equal(v, plain[k % 12]["x"].flip(2)) for k, v in enumerate(x)]
    assert all(m or torch.equal(v, plain[k % 12]["x"]) for k, (v, m) in enumerate(zip(x, mirrored, strict=True)))
    assert 30 < sum(mirrored) < 66


def test_every_choice_is_part_of_the_fingerprint(bars):
    prints = {
        Folder(str(bars), 16, crop=crop, flip=flip).open("train").fingerprint
        for crop in ("adm", "edm2", "random")
        for flip in ("no", "double", "random")
    }
    assert len(prints) == 9
