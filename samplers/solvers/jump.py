"""One evaluation per step of a flow map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn

__all__ = ["Jump"]


@dataclass(frozen=True)
class Jump:
    """x_s from a denoiser that is told where it goes: f(x, t, s=s) predicts the x0 and eps of the chord from t to s.

    The sampler of flow maps (MeanFlow, Geng et al. 2025, eq. 12; Shortcut, Frans et al. 2024; CTM). With the exact
    average velocity one step is exact, so its order says nothing.
    """

    order: ClassVar[None] = None

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        return path.interpolate(f(x, t, s=s), s), None
