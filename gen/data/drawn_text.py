"""Drawn text: crops of pages of words in Pillow's own font, with blurred and noisy versions; nothing is downloaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from gen.config.errors import MissingDependency
from gen.config.fields import check_fields
from gen.data.lib.tensors import check_split, content_hash
from gen.diffusion.noise import derive

__all__ = ["DrawnText", "Drawn"]  # noqa: RUF022 - the plug-in comes first

SIDE = 192  # of a page, pixels
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True)
class DrawnText:
    """Square grey crops of pages of random words, black on white, and as "low" their blurred and noisy versions.

    A page has letters of one size, from 10 to 20 pixels. "test" has pages of its own, a quarter as many. Blur and noise
    are drawn once, for whole pages. What the font looks like depends on the version of Pillow.

    Attributes:
        size: side of a crop, pixels.
        pages: to train on.
        blur: standard deviation of the Gaussian blur, pixels.
        noise: standard deviation of the noise, on the range [0, 1].
        stride: distance between neighbouring crops, pixels.
    """

    size: int = 32
    pages: int = 24
    blur: float = 1.3
    noise: float = 0.03
    stride: int = 16

    def __post_init__(self) -> None:
        check_fields(self, size=f"[8, {SIDE}]", pages="[4, 10000]", blur="(0, 20]", noise="[0, 1]", stride="[1, inf)")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, self.size, self.size)

    @property
    def classes(self) -> int:
        return 0

    def open(self, split: str) -> Drawn:
        """Open "train" or "test"."""
        check_split(split)
        count = self.pages if split == "train" else self.pages // 4
        pages = torch.stack([draw_page(derive("page", split, i)) for i in range(count)])
        clean = pages.float()[:, None] / 127.5 - 1  # [P, 1, SIDE, SIDE]
        generator = torch.Generator().manual_seed(derive("noise", split))
        low = blurred(clean, self.blur) + 2 * self.noise * torch.randn(clean.shape, generator=generator)
        return Drawn(clean, low, self.size, self.stride)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Items {"x", "low"}, float32 [1, size, size] each, x in [-1, 1].

    Attributes:
        pages, low: float32 [P, 1, SIDE, SIDE].
        size, stride: of crops.
    """

    pages: Tensor
    low: Tensor
    size: int
    stride: int

    @cached_property
    def fingerprint(self) -> str:
        """A hash of pages, degraded pages and crops."""
        return content_hash("drawn_text", str(self.size), str(self.stride), self.pages, self.low)

    @property
    def per_row(self) -> int:
        """Crops in a row of a page."""
        return (SIDE - self.size) // self.stride + 1

    def __len__(self) -> int:
        return len(self.pages) * self.per_row**2

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        page, crop = divmod(i, self.per_row**2)
        row, column = (self.stride * k for k in divmod(crop, self.per_row))
        window = (page, slice(None), slice(row, row + self.size), slice(column, column + self.size))
        return {"x": self.pages[window], "low": self.low[window]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        items = [self[i] for i in rows]
        return {key: torch.stack([item[key] for item in items]) for key in ("x", "low")}


def draw_page(seed: int) -> Tensor:
    """Return a page of random words, uint8 [SIDE, SIDE], 255 where it is white.

    Args:
        seed: decides words and size of the letters.

    Raises:
        MissingDependency: for a Pillow without a font that scales.
    """
    from PIL import Image, ImageDraw, ImageFont

    draw, height = random.Random(seed), 0
    letters = draw.randrange(10, 21)
    page = Image.new("L", (SIDE, SIDE), 255)
    font = ImageFont.load_default(letters)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise MissingDependency("the data drawn_text need a Pillow with FreeType, for its scalable font")
    while height < SIDE:
        words = ["".join(draw.choices(LETTERS, k=draw.randrange(1, 9))) for _ in range(SIDE // letters)]
        ImageDraw.Draw(page).text((draw.randrange(-8, 8), height), " ".join(words), fill=0, font=font)
        height += letters + 4
    return torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(SIDE, SIDE)


def blurred(x: Tensor, std: float) -> Tensor:
    """Return pictures [B, 1, H, W] under a Gaussian blur with the border repeated.

    Args:
        x: the pictures.
        std: of the blur, pixels.
    """
    reach = min(round(4 * std + 0.5), min(x.shape[2:]))
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=x.dtype) ** 2) / (2 * std**2))
    weights = weights / weights.sum()
    x = pad(x, [reach] * 4, mode="replicate")
    return conv2d(conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
