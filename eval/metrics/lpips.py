"""LPIPS of restored images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.features.lib.lpips import Lpips
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_pairs, mean_over_images

__all__ = ["LPIPS"]


@dataclass(frozen=True)
class LPIPS:
    """The mean over images of the learned perceptual distance (Zhang et al. 2018).

    Attributes:
        distance: trunk and weights.
    """

    columns: ClassVar = (
        Column("lpips", "LPIPS", note="perceptual distance to the image that each sample should be", priority=20),
    )
    needs: ClassVar = "pairs"
    default: ClassVar = False

    distance: Lpips = field(default_factory=Lpips)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from uint8 images [N, C, H, W] and those that they should be."""
        check_pairs("lpips", samples, reference)
        return mean_over_images(self.distance.load(), samples, reference)
