"""Guidance by a worse version of the model itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, CountingDenoiser, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.tap import Tap, with_branch
from gen.samplers.guides.lib.two_predictions import Pair, Rule, towards

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(Pair):
    """Autoguidance, w + scale (d - w): the denoiser d against a weaker w of the same task (Karras et al. 2024, eq. 5).

    weak: the run folder of a smaller or less trained model, or a denoiser; it is told the same condition, if any.
    scale: 1 is the denoiser itself, 0 the weak one. The weak network's evaluations are counted like the others.
    """

    scale: float = 2.0
    weak: Any = field(kw_only=True)

    u_alone: ClassVar[float | None] = 0.0
    needs_cond: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.together:
            raise UserError("Auto: together = True, but its two predictions come from two networks")

    def rule(self, times: Tensor) -> Rule:
        def rule(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            return towards(u, c, self.scale)

        return rule

    def other(self, f: DenoiserLike) -> DenoiserLike:
        if self.model.path != f.path:
            raise UserError(f"Auto: the weak model's path is {self.model.path}, the other's {f.path}; they must agree")
        return Weak(self.model, f)

    @cached_property
    def model(self) -> DenoiserLike:
        """The weak denoiser; loaded once."""
        if not isinstance(self.weak, str):
            return self.weak
        from gen.pipeline import load_images

        return load_images(self.weak).denoiser


@dataclass(frozen=True, eq=False)
class Weak:
    """The weak denoiser, where the strong one is, and counted with it."""

    model: DenoiserLike
    strong: DenoiserLike

    @property
    def path(self) -> NoisePath:
        return self.model.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if isinstance(self.strong, CountingDenoiser):
            self.strong.calls += 1
            self.strong.rows += len(x)
        if isinstance(self.model, Denoiser):
            self.model.net.to(x.device)
        return self.model(x, t, cond, s=s, tap=with_branch(tap, "weak"))

    def null(self, cond: Cond) -> Cond:
        return self.model.null(cond)
