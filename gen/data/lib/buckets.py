"""Aspect-ratio buckets: a few sizes of about the same area, and the one of them that suits each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["bucket_sizes", "nearest_bucket"]

Sizes = tuple[tuple[int, int], ...]


def bucket_sizes(size: tuple[int, int], step: int) -> Sizes:
    """Return the heights and widths of all buckets, from the widest to the highest.

    Sides are multiples of a step, from half to twice the side of a square of that area; each goes with the longest
    other side at which the area is not exceeded. (NovelAI 2022, "Improvements on Stable Diffusion"; kohya's sd-scripts;
    the sizes of SDXL, Podell et al. 2023, appendix I, are of this kind, at 1024 and a step of 64.)

    Args:
        size: height and width, pixels, whose area no bucket exceeds.
        step: of the sides, pixels.

    Returns:
        At least the square; () for a step that is longer than its side.
    """
    area, side = math.prod(size), math.isqrt(math.prod(size))
    most = 2 * side // step * step
    square = side // step * step
    sizes = {(square, square)} if square else set()
    for one in range(math.ceil(side / 2 / step) * step, most + 1, step):
        other = min(most, area // one // step * step)
        if 2 * other >= side and other:
            sizes |= {(one, other), (other, one)}
    return tuple(sorted(sizes, key=lambda pair: (pair[0] / pair[1], pair)))


def nearest_bucket(widths: Sequence[int] | np.ndarray, heights: Sequence[int] | np.ndarray, sizes: Sizes) -> np.ndarray:
    """Return the index of each picture's bucket, int64 [N]: that of the nearest logarithm of the aspect ratio.

    Args:
        widths, heights: of the pictures.
        sizes: of the buckets, height and width; of several with one ratio the largest is taken.
    """
    order = sorted(range(len(sizes)), key=lambda k: -math.prod(sizes[k]))
    ratios = np.log([sizes[k][0] / sizes[k][1] for k in order])
    given = np.log(np.asarray(heights, np.float64) / np.asarray(widths, np.float64))
    different, which = np.unique(given, return_inverse=True)
    nearest = np.array([np.abs(ratios - ratio).argmin() for ratio in different], np.int64)
    return np.array(order, np.int64)[nearest][which]
