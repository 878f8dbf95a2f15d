"""Classifier-free guidance with a scale for each of two stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide

__all__ = ["StagedCFG"]

ROUNDING = 1e-7  # of the boundary, a product of float32 numbers in pipelines


@dataclass(frozen=True)
class StagedCFG(TwoPredictionGuide):
    """u + w (c - u), w = scale at high noise and low_scale below the boundary: Wan 2.2's `guidance_scale_2`.

    Attributes:
        scale: while t / t1 >= boundary.
        low_scale: while t / t1 < boundary; None for the same.
        boundary: between the stages, as a share of t1 (Wan 2.2's `boundary_ratio`).
    """

    low_scale: float | None = None
    boundary: float = 0.875

    scale_of_cond: ClassVar[float | None] = None  # that of a stage: see `active`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, boundary="[0, 1]")

    def active(self, path: NoisePath, t: Tensor, times: Tensor) -> Tensor:
        return super().active(path, t, times) & (self.scale_at(path, t) != 1)

    def scale_at(self, path: NoisePath, t: Tensor) -> Tensor:
        """Return w at times t, shaped as t."""
        scales = (self.scale, self.scale if self.low_scale is None else self.low_scale)
        high, low = torch.tensor(scales, dtype=torch.float64, device=t.device)
        return torch.where(t / path.t1 >= self.boundary - ROUNDING, high, low)

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        w = expand(self.scale_at(path, t), x)
        return Prediction(u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps))
