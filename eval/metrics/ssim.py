"""Structural similarity of restored images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from gen.config.errors import UserError
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_pairs, mean_over_images

__all__ = ["SSIM"]

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class SSIM:
    """The mean over images of the structural similarity (Wang et al. 2004), in float64.

    Gaussian window of 11 pixels, sigma 1.5, at all positions inside the image; K1 = .01, K2 = .03; mean over channels.
    """

    columns: ClassVar = (
        Column(
            "ssim",
            "SSIM",
            higher_is_better=True,
            perfect=1.0,
            note="structural similarity with the image that each sample should be",
            priority=21,
        ),
    )
    needs: ClassVar = "pairs"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from uint8 images [N, C, H, W] of at least 11 pixels, and those that they should be."""
        check_pairs("ssim", samples, reference)
        if min(samples.shape[2:]) < WINDOW:
            raise UserError(f"ssim: images of {list(samples.shape[2:])} pixels; it needs at least {WINDOW}")
        return mean_over_images(similarity, samples, reference)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the similarity of each pair, float64 [B].

    Args:
        a, b: images [B, C, H, W] in 0 .. 255.
    """
    x, y = (images.double().flatten(0, 1)[:, None] for images in (a, b))  # [B C, 1, H, W]
    window = torch.exp(-((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    window /= window.sum()

    def smooth(images: Tensor) -> Tensor:
        return conv2d(conv2d(images, window[None, None, :, None]), window[None, None, None, :])

    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    values = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return values.unflatten(0, a.shape[:2]).flatten(1).mean(1)
