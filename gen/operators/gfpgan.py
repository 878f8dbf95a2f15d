"""GFPGAN's degradation: old photographs of faces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.operators.lib.degradations import Degradation, blur_kernel, compressed, filtered, normal, resized, uniform

__all__ = ["GFPGAN"]

KERNEL, DEVIATION, STRETCHED = 41, (0.1, 15.0), 0.5  # side and deviations, pixels; probability
SCALE, NOISE, QUALITY = (0.8, 32.0), (0.0, 20.0), (30, 100)  # noise of 255


@dataclass(frozen=True)
class GFPGAN:
    """Blur, shrinking, noise and JPEG, enlarged again to the picture's own size (Wang et al. 2021).

    As published but for the faces that are grey, one of a hundred there, which are their own targets. Sizes are of
    faces of 512 pixels. A seed gives one degradation: the data `degraded` draw another one for each picture.

    Attributes:
        seed: of all that is random.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, seed="[0, inf)")

    def on(self, shape: tuple[int, ...]) -> Degradation:
        """Return the operator on samples [1, H, W] or [3, H, W]."""
        return Degradation(shape, shape, _degrade, self.seed)


def _degrade(x: Tensor, draw: torch.Generator) -> Tensor:
    height, width = x.shape[1:]
    stretched = uniform(draw, 0, 1) < STRETCHED
    x = filtered(x, blur_kernel(KERNEL, DEVIATION, "gaussian", stretched, draw))
    scale = uniform(draw, *SCALE)
    x = resized(x, max(round(height / scale), 1), max(round(width / scale), 1))
    x = x + uniform(draw, *NOISE) / 255 * normal(x, draw)
    return resized(compressed(x, QUALITY, draw), height, width)
