"""Guidance by a worse version of the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gen.config.errors import UserError, shown
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, extrapolate

__all__ = ["Autoguidance"]


@dataclass(frozen=True)
class Autoguidance(TwoPredictionGuide):
    """Autoguidance, w + scale (d - w): the denoiser d against a weaker w of the same task (Karras et al. 2024, eq. 5).

    Attributes:
        scale: 1 is the denoiser itself, 0 the weak one.
        weak: the run folder of a smaller or less trained model, or a denoiser; it gets the same condition, if any. Its
            evaluations are counted like the others.
    """

    scale: float = 2.0
    weak: Any = field(kw_only=True)  # str | DenoiserLike, which a spec cannot check

    scale_of_uncond: ClassVar[float | None] = 0.0
    needs_cond: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.weak, (str, Path)) and (isinstance(self.weak, type) or not callable(self.weak)):
            raise UserError(f"Autoguidance: weak = {shown(self.weak)}; it must be a run folder or a denoiser")
        if isinstance(self.weak, Path):
            object.__setattr__(self, "weak", str(self.weak))
        if self.batched:
            raise UserError("Autoguidance: batched = True, but its two predictions come from two networks")

    def __call__(self, f: DenoiserLike, times: Tensor, *others: DenoiserLike) -> DenoiserLike:
        if self.model.path != f.path:
            raise UserError(
                f"Autoguidance: the weak model's path is {self.model.path}, the other's {f.path}; they must agree"
            )
        return super().__call__(f, times, *others)

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        return extrapolate(u, c, self.scale)

    def other_denoisers(self) -> tuple[DenoiserLike, ...]:
        return (self.model,)

    @cached_property
    def model(self) -> DenoiserLike:
        """The weak denoiser; loaded once."""
        if not isinstance(self.weak, str):
            weak: DenoiserLike = self.weak
            return weak
        from gen.pipeline import load_images

        return load_images(self.weak).denoiser
