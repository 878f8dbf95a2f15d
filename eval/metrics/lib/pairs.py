"""Scores of single images beside those that they should be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.estimate import Estimate

__all__ = ["check_colour", "check_pairs", "images_at_once", "luma", "mean_over_images"]

BATCH = 16  # of networks that compare images: no call of theirs is half empty
NUMBERS = 2**22  # in the images that are compared at once
LUMA, BLACK = (65.481, 128.553, 24.966), 16.0  # of ITU-R BT.601, 16 .. 235


def check_pairs(name: str, samples: Tensor, targets: Tensor) -> None:
    """Check that samples and targets are images of one shape.

    Args:
        name: of the metric, for messages.
        samples: uint8 [N, C, H, W], N >= 1.
        targets: uint8, of the same shape.

    Raises:
        UserError: if they are not.
    """
    if samples.ndim != 4 or samples.shape != targets.shape or not len(samples):
        raise UserError(f"{name}: images {list(samples.shape)} and {list(targets.shape)}; allowed: [N, C, H, W] of one")
    if (samples.dtype, targets.dtype) != (torch.uint8, torch.uint8):
        raise UserError(f"{name}: images of {samples.dtype} and {targets.dtype}; allowed: uint8")


def check_colour(name: str, samples: Tensor, targets: Tensor, border: int) -> None:
    """Check that samples and targets are colour images of one shape, larger than their borders.

    Args:
        name: of the metric, for messages.
        samples, targets: see check_pairs.
        border: pixels at each edge that do not count.

    Raises:
        UserError: if they are not.
    """
    check_pairs(name, samples, targets)
    if samples.shape[1] != 3:
        raise UserError(f"{name}: images of {samples.shape[1]} channels; it needs red, green and blue")
    if min(samples.shape[2:]) <= 2 * border:
        raise UserError(f"{name}: border = {border} leaves nothing of {list(samples.shape[2:])} pixels")


def luma(images: Tensor, border: int = 0) -> Tensor:
    """Return the Y channel of YCbCr, MATLAB's rgb2ycbcr before its rounding, float64 [B, 1, H, W] in 16 .. 235.

    Args:
        images: [B, 3, H, W] in 0 .. 255.
        border: pixels at each edge that are cut off.
    """
    weights = torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1) / 255
    inside = slice(border, -border or None)
    return BLACK + (weights * images[..., inside, inside].double()).sum(1, keepdim=True)


def images_at_once(images: Tensor) -> int:
    """Return how many images to compare at once, so that memory does not grow with their size.

    Args:
        images: [N, C, H, W].
    """
    size = max(1, NUMBERS // images[0].numel())
    return size if size < BATCH else size - size % BATCH


def mean_over_images(
    score: Callable[[Tensor, Tensor], Tensor], samples: Tensor, targets: Tensor, size: int | None = None
) -> Estimate:
    """Return the mean of a score over images, with its standard error; None of a single image.

    Args:
        score: of images and targets [B, ...], [B].
        samples: [N, ...], images or what stands for them.
        targets: [N, ...].
        size: B; None for that of images.
    """
    size = images_at_once(samples) if size is None else size
    pairs = zip(samples.split(size), targets.split(size), strict=True)
    scores, n = torch.cat([score(a, b).double() for a, b in pairs]), len(samples)
    return Estimate(float(scores.mean()), float(scores.std()) / n**0.5 if n > 1 else None, n)
