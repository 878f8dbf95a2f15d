"""Guidance that stays on the manifold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, extrapolate

__all__ = ["CFGpp"]


@dataclass(frozen=True)
class CFGpp(TwoPredictionGuide):
    """CFG++ (Chung et al. 2024, algorithm 2): the guided x0, but the unconditional eps to noise it again.

    The prediction is therefore a pair that does not add up to x, and solvers move by alpha_s x0 + sigma_s eps.

    Attributes:
        scale: the paper's lambda, in [0, 1] as a rule: 0 is the unconditional model, 1 has the conditional x0; 0.6 does
            about what plain guidance does at 7.5.
    """

    scale: float = 0.6

    scale_of_cond: ClassVar[float | None] = None
    scale_of_uncond: ClassVar[float | None] = 0.0

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        return Prediction(extrapolate(u, c, self.scale).x0, u.eps)
