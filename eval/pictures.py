"""Pictures inside records and pages: PNG files in base64."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from torch import Tensor

from gen.config.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["heatmap", "strip"]

MAX_HEIGHT = 64  # pixels, of an image in a strip
INK, PAPER = (62, 124, 196, 255), (128, 132, 138, 44)  # of a heat map's 1 and 0, on white as well as on black
CELL, GAP = 24, 2  # pixels of a heat map, which is shown at half its size; smaller where there are many


def strip(images: Tensor, rows: int = 1) -> str:
    """Draw images side by side with clear gaps; large ones smaller; of a film its first picture.

    Args:
        images: uint8 [N, C, H, W], or [N, C, T, H, W].
        rows: pictures that stand above each other in an image.

    Returns:
        A PNG in base64.
    """
    from PIL import Image

    images = images if images.ndim == 4 else images[:, :, 0]
    n, c, h, w = images.shape
    one = h // rows
    high = rows * min(one * max(1, 32 // one), MAX_HEIGHT)
    wide, gap = max(1, w * high // h), max(1, high // rows // 8)
    sheet = Image.new("LA" if c == 1 else "RGBA", (n * (wide + gap) - gap, high))
    for i, image in enumerate(images):
        picture = to_pil(image).resize((wide, high), Image.Resampling.BOX if h > high else Image.Resampling.NEAREST)
        sheet.paste(picture.convert(sheet.mode), (i * (wide + gap), 0))
    return _base64(sheet)


def heatmap(cells: Tensor) -> str:
    """Draw numbers as colours, with gaps between the cells.

    Args:
        cells: 0 .. 1, [row, column].

    Returns:
        A PNG in base64.
    """
    from PIL import Image

    rows, columns = cells.shape
    high = CELL if rows <= 24 else CELL // 2 if rows <= 80 else CELL // 4
    wide = max(4, min(CELL, 1000 // columns))
    sheet = Image.new("RGBA", (columns * wide - GAP, rows * high - GAP))
    for i, row in enumerate(cells.tolist()):
        for j, share in enumerate(row):
            colour = tuple(round(a + share * (b - a)) for a, b in zip(PAPER, INK, strict=True))
            sheet.paste(colour, (j * wide, i * high, (j + 1) * wide - GAP, (i + 1) * high - GAP))
    return _base64(sheet)


def _base64(sheet: Image) -> str:
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
