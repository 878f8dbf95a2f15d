"""Data to be restored: always the same pages of text and digits, with their degraded versions."""

from __future__ import annotations

import torch

from gen.data.drawn_text import DrawnText, blurred
from gen.data.low_digits import LowDigits


def test_it_holds_crops_of_pages_with_their_degraded_versions():
    source = DrawnText(pages=4, stride=32)
    train, test = source.open("train"), source.open("test")
    assert (len(train), len(test)) == (4 * 36, 36) and source.open("train").fingerprint == train.fingerprint
    assert train.fingerprint != test.fingerprint != DrawnText(pages=4, stride=32, noise=0.1).open("test").fingerprint
    item, batch = train[37], train.batch([0, 37])
    assert item["x"].shape == item["low"].shape == (1, 32, 32)
    assert torch.equal(batch["low"][1], item["low"]) and torch.equal(item["x"], train.pages[1, :, :32, 32:64])
    assert float(train.pages.min()) == -1 and float(train.pages.max()) == 1  # black letters on white
    assert 0.1 < float((train.pages < 0).float().mean()) < 0.5
    sharp, soft = (part.diff(dim=-1).square().mean() for part in (train.pages, train.low))
    assert float(soft) < 0.3 * float(sharp)
    rest = train.low - blurred(train.pages, 1.3)
    assert abs(float(rest.std()) - 0.06) < 1e-3


def test_a_blur_keeps_constants_and_widens_a_point_by_its_variance():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    out, at = blurred(x, 2.0)[0, 0], torch.arange(41.0).double() - 20
    torch.testing.assert_close(blurred(x + 3, 2.0), blurred(x, 2.0) + 3)
    assert abs(float((out.sum(0) * at**2).sum()) - 4) < 0.02


def test_low_digits_have_other_noise_in_each_copy():
    train, test = LowDigits(copies=2).open("train"), LowDigits(noise=0.0).open("test")
    assert (len(train), len(test)) == (2 * 1437, 360) and train.fingerprint != test.fingerprint
    assert torch.equal(test.low, torch.nn.functional.avg_pool2d(test.x, 2))
    assert torch.equal(train.x[0], train.x[1437]) and not torch.equal(train.low[0], train.low[1437])
    assert train.batch([0, 5])["low"].shape == (2, 1, 4, 4) and torch.equal(train[5]["x"], train.batch([0, 5])["x"][1])
