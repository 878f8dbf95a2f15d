"""Peak signal-to-noise ratio of restored images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_pairs, mean_over_images

__all__ = ["PSNR", "decibels"]

CEILING = 100.0  # dB, of images that are equal


@dataclass(frozen=True)
class PSNR:
    """The mean over images of 10 log10(255^2 / MSE), in dB, over all channels; at most 100, that of equal images."""

    columns: ClassVar = (
        Column(
            "psnr",
            "PSNR",
            higher_is_better=True,
            perfect=CEILING,
            note="peak signal-to-noise ratio against the image that each sample should be, in dB",
            priority=22,
        ),
    )
    needs: ClassVar = "pairs"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from uint8 images [N, C, H, W] and those that they should be."""
        check_pairs("psnr", samples, reference)
        return mean_over_images(decibels, samples, reference)


def decibels(a: Tensor, b: Tensor) -> Tensor:
    """Return the ratio of each pair, float64 [B].

    Args:
        a, b: images [B, ...] in 0 .. 255.
    """
    mse = ((a.double() - b.double()) ** 2).flatten(1).mean(1)
    return (10 * torch.log10(255**2 / mse)).clamp(max=CEILING)
