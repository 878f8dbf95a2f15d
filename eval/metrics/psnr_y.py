"""Peak signal-to-noise ratio of luminance, as tables of super-resolution have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_colour, luma, mean_over_images
from gen.eval.metrics.psnr import CEILING, decibels

__all__ = ["PSNRY"]


@dataclass(frozen=True)
class PSNRY:
    """The mean over images of 10 log10(255^2 / MSE) of the Y channel (16 to 235) inside a border, in dB; at most 100.

    Attributes:
        border: pixels at each edge that do not count, in the field's tables the scale of the super-resolution.
    """

    columns: ClassVar = (
        Column(
            "psnr_y",
            "PSNR-Y",
            higher_is_better=True,
            perfect=CEILING,
            note="peak signal-to-noise ratio of luminance inside a border, in dB",
            priority=17,
        ),
    )
    needs: ClassVar = "pairs"
    default: ClassVar = False
    named: ClassVar = True

    border: int = 4

    def __post_init__(self) -> None:
        check_fields(self, border="[0, 10000]")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from uint8 images [N, 3, H, W] and those that they should be."""
        check_colour("psnr_y", samples, reference, self.border)
        return mean_over_images(lambda a, b: decibels(luma(a, self.border), luma(b, self.border)), samples, reference)
