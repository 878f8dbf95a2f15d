"""Structural similarity of luminance, as tables of super-resolution have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_colour, luma, mean_over_images
from gen.eval.metrics.ssim import WINDOW, similarity

__all__ = ["SSIMY"]


@dataclass(frozen=True)
class SSIMY:
    """The mean over images of the structural similarity of the Y channel (16 to 235) inside a border; see SSIM.

    Attributes:
        border: pixels at each edge that do not count, in the field's tables the scale of the super-resolution.
    """

    columns: ClassVar = (
        Column(
            "ssim_y",
            "SSIM-Y",
            higher_is_better=True,
            perfect=1.0,
            note="structural similarity of luminance inside a border",
            priority=16,
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
        check_colour("ssim_y", samples, reference, self.border)
        if min(samples.shape[2:]) < WINDOW + 2 * self.border:
            sizes = list(samples.shape[2:])
            raise UserError(f"ssim_y: images of {sizes} pixels; inside its border it needs at least {WINDOW}")
        return mean_over_images(lambda a, b: similarity(luma(a, self.border), luma(b, self.border)), samples, reference)
