"""Guidance whose scale changes along the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.samplers.guides.lib.two_predictions import Combine, TwoPredictionGuide

__all__ = ["DynamicCFG"]


@dataclass(frozen=True)
class DynamicCFG(TwoPredictionGuide):
    """u + w(t) (c - u) with w = 1 + (scale - 1) (1 - cos(pi ((N - k) / N)^power)) / 2: CogVideoX's `use_dynamic_cfg`.

    k = total t / t1 - 1, rounded, is the entry of a table at t, and N the number of steps. As published k goes up to
    999 where N is 50, so that w swings between 1 and scale at high noise, and grows to scale in the last steps.

    Attributes:
        scale: the largest w, 1 more than CogVideoX's guidance_scale.
        power: of the fraction (N - k) / N.
        total: entries of the table.
        num_steps: N; None for the loop's own.
    """

    scale: float = 7.0
    power: int = 5
    total: int = 1000
    num_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, power="[1, 100]", total="[2, 100000]", num_steps="[1, 100000]")

    @property
    def loop_options(self) -> tuple[str, ...]:
        return super().loop_options if self.num_steps else (*super().loop_options, "num_steps")

    def combine_in_loop(self, times: Tensor) -> Combine:
        n = self.num_steps or len(times) - 1

        def combine(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            left = (n - (self.total * t.double() / path.t1 - 1).round()) / n
            w = 1 + (self.scale - 1) * (1 - torch.cos(math.pi * left**self.power)) / 2
            return Prediction(u.x0 + expand(w, x) * (c.x0 - u.x0), u.eps + expand(w, x) * (c.eps - u.eps))

        return combine
