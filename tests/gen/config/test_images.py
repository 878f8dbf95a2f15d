"""Tensors to pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gen.config.errors import NonFinite, UserError
from gen.config.images import contact_sheet, to_pil, to_uint8


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = levels.float() / 127.5 - 1
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x.double()), levels)


def test_it_rounds_rather_than_truncates():
    """Truncation darkens by half a level: on average over uniform x there is no bias."""
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    bias = (to_uint8(x).double() - (x + 1) * 127.5).mean()
    assert abs(float(bias)) < 1e-3


def test_it_clamps():
    assert to_uint8(torch.tensor([-7.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_it_refuses_what_is_not_finite(bad):
    x = torch.zeros(2, 3)
    x[0, 1] = bad
    with pytest.raises(NonFinite, match="1 of 6 values"):
        to_uint8(x)


def test_pictures_hold_the_same_numbers():
    grey, colour = torch.randint(256, (1, 4, 5)).to(torch.uint8), torch.randint(256, (3, 4, 5)).to(torch.uint8)
    assert np.array_equal(np.array(to_pil(grey)), grey[0].numpy())
    assert np.array_equal(np.array(to_pil(colour)), colour.permute(1, 2, 0).numpy())
    assert to_pil(grey).mode == "L"
    assert to_pil(colour).mode == "RGB"


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match="1 or 3 channels"):
        to_pil(torch.zeros(shape, dtype=torch.uint8))


def test_contact_sheet_puts_images_in_reading_order():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3) * 10
    sheet = np.array(contact_sheet(images, columns=3, zoom=2, gap=1))
    assert sheet.shape == (2 * 4 + 1, 3 * 6 + 2)
    assert [int(sheet[1, x]) for x in (0, 7, 14)] == [0, 10, 20]
    assert [int(sheet[6, x]) for x in (0, 7)] == [30, 40]
    assert (sheet[4] == 255).all()  # the gap
    assert (sheet[5:, 14:] == 255).all()  # nothing there
    assert contact_sheet(images, columns=10).size == (5 * 3 + 4, 2)  # no empty columns
