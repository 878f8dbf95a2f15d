"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, extrapolate

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG(TwoPredictionGuide):
    """u + scale (c - u) for the conditional prediction c and the unconditional u (Ho & Salimans 2022, eq. 6).

    Pipelines that write c + w (c - u), such as Z-Image's, have scale = 1 + w. One that stops guiding after a share of
    the steps (Lumina2's cfg_trunc_ratio) has steps = (0, ratio).

    Attributes:
        scale: 1 is the conditional model, 0 the unconditional one; each then costs one evaluation instead of two.
        interval: the noise levels at which to guide (Kynkaanniemi et al. 2024).
    """

    scale_of_uncond: ClassVar[float | None] = 0.0

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        return extrapolate(u, c, self.scale)
