"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import Pair, Rule, towards

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG(Pair):
    """u + scale (c - u) for the conditional prediction c and the unconditional u (Ho & Salimans 2022, eq. 6).

    scale: 1 is the conditional model, 0 the unconditional one; each then costs one evaluation instead of two.
    interval: the noise levels sigma / alpha, low < level <= high, at which to guide (Kynkaanniemi et al. 2024); outside
    it only the conditional network runs. steps: the same as a part of the walk. channels: guide only the first ones.
    """

    u_alone: ClassVar[float | None] = 0.0

    def rule(self, times: Tensor) -> Rule:
        def rule(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            return towards(u, c, self.scale)

        return rule
