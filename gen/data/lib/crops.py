"""Crops: the field's rules by which a picture of any size becomes one of a given size.

A rule of the middle is a function (picture, size) -> picture; `random_crop` has a key, from which it draws.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gen.diffusion.noise import derive

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["center_crop", "fit", "random_crop"]

SMALLEST_SHARE = 0.8  # of a picture's shorter side that a random crop shows, as in guided-diffusion


def fit(image: Image, size: tuple[int, int]) -> Image:
    """Scale a picture, sides in proportion, until it just covers a size, and crop the middle.

    Halves by a box filter while possible and scales the rest bicubically: the preprocessing of the ADM reference
    statistics (Dhariwal & Nichol 2021), to the bit for squares.

    Args:
        image: the picture.
        size: height and width of the result, in pixels.
    """
    image = _cover(image, size)
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def center_crop(image: Image, size: tuple[int, int]) -> Image:
    """Crop the largest middle part of a size's shape, and scale that by a Lanczos filter.

    For squares the `center-crop` of the dataset tools of EDM and EDM2 (Karras et al. 2022, 2024), to the bit.

    Args:
        image: the picture.
        size: height and width of the result, in pixels.
    """
    from PIL.Image import Resampling

    height, width = size
    scale = min(image.height / height, image.width / width)
    high, wide = min(image.height, round(height * scale)), min(image.width, round(width * scale))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high)).resize((width, height), Resampling.LANCZOS)


def random_crop(image: Image, size: tuple[int, int], key: int) -> Image:
    """Scale a picture as `fit` does, but to a random larger size, and crop a random part of it.

    The shorter side becomes a whole number of pixels between the size's and 1 / 0.8 of that, each as likely: the random
    crop of guided-diffusion (Dhariwal & Nichol 2021).

    Args:
        image: the picture.
        size: height and width of the result, in pixels.
        key: of the draw; equal keys give equal crops.
    """
    height, width = size
    short = min(size)
    scaled = short + derive("zoom", key) % (math.ceil(short / SMALLEST_SHARE) - short + 1)
    image = _cover(image, (math.ceil(height * scaled / short), math.ceil(width * scaled / short)))
    top = derive("top", key) % (image.height - height + 1)
    left = derive("left", key) % (image.width - width + 1)
    return image.crop((left, top, left + width, top + height))


def _cover(image: Image, size: tuple[int, int]) -> Image:
    """Scale a picture, sides in proportion, until it just covers a size."""
    from PIL.Image import Resampling

    height, width = size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    return image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
