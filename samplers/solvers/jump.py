"""One evaluation per step of a flow map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["Jump"]


@dataclass(frozen=True)
class Jump(Solver):
    """x_s from a flow map: f(x, t, s=s) predicts the x0 and eps of the chord from t to s.

    The sampler of MeanFlow (Geng et al. 2025, eq. 12), Shortcut (Frans et al. 2024) and CTM. With the exact average
    velocity one step is exact, so its order says nothing.
    """

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        return path.interpolate(f(x, t, s=s), s), None
