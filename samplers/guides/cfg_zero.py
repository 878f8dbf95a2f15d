"""Guidance for flows whose first step is worse than none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.denoise import Cond, Denoise
from gen.errors import UserError
from gen.param import Flow
from gen.path import Path, Prediction
from gen.samplers.guides._pair import Pair, Rule, before, dot
from gen.spec import part
from gen.tap import Tap

__all__ = ["CFGZero"]


@dataclass(frozen=True)
class CFGZero(Pair):
    """CFG-Zero* (Fan et al. 2025, algorithm 1): k u + scale (c - k u) with k = <c, u> / |u|^2 of each sample.

    space: the parameterisation of c and u; the paper's is the velocity. zero_steps: in so many first steps the velocity
    is taken as zero, and no network runs. scale 1 is the conditional model afterwards; 0 is k u, not u.
    """

    zero_steps: int = 1
    space: Any = part("param", default=Flow())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_steps < 0:
            raise UserError(f"CFGZero: zero_steps = {self.zero_steps}; it must be at least 0")

    def __call__(self, f: Denoise, times: Tensor) -> Denoise:
        if self.zero_steps >= len(times) - 1:
            raise UserError(f"CFGZero: zero_steps = {self.zero_steps} of {len(times) - 1} steps; nothing would move")
        return StandStill(super().__call__(f, times), self.zero_steps, times)

    def rule(self, times: Tensor) -> Rule:
        def rule(path: Path, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            of_c, of_u = self.space.target(path, *c, t), self.space.target(path, *u, t)
            share = dot(of_c, of_u) / dot(of_u, of_u).clamp(min=torch.finfo(torch.float32).tiny)
            base = share.to(of_u) * of_u
            guided: Prediction = self.space.solve(path, x, base + self.scale * (of_c - base), t)
            return guided

        return rule


@dataclass(frozen=True, eq=False)
class StandStill:
    """A denoiser whose velocity is zero in the first steps of a walk."""

    inner: Denoise
    zero_steps: int
    times: Tensor

    @property
    def path(self) -> Path:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if self.zero_steps and bool(before(t, self.times, self.zero_steps).all()):
            return Flow().solve(self.path, x, torch.zeros_like(x), t)
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)
