"""TeaCache's indicator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.policies.lib.policy import Policy, Rows, distance

__all__ = ["Indicator"]


class Sum(NamedTuple):
    """The indicator one step ago [B, ...], and each row's sum since it was last computed."""

    before: Tensor
    total: tuple[float, ...]


@dataclass(frozen=True)
class Indicator(Policy):
    """Skips until the input of the first attention has moved far enough in all (TeaCache, Liu et al. 2024).

    Each step adds p(mean |v - v'| / mean |v'|), v being the probe's input, normed and modulated by time, and v' the
    same one step ago. A row is computed, and its sum starts anew, when the sum reaches `threshold`; the first and the
    last step always. coefficients: of the polynomial p, highest power first, fitted for each model (the published one
    for FLUX is 498.65, -283.78, 55.86, -3.82, 0.264); (1, 0) is the distance itself. Below zero it counts as zero.
    """

    early: ClassVar[bool] = True
    threshold: float = 0.15
    coefficients: tuple[float, ...] = (1.0, 0.0)
    warmup: int = 1
    probe: str = "blocks.0.attn.raw"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.threshold < 0 or not self.coefficients:
            raise UserError(f"indicator: threshold = {self.threshold}, coefficients = {self.coefficients}")

    def decide(self, context: Context, state: Sum | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Sum]:
        assert h is not None
        ends = context.step < self.warmup or context.step == context.steps - 1
        if state is None or ends:
            return [True] * len(h), Sum(h, (0.0,) * len(h))
        moved = distance(h, state.before)
        total = [old + max(self._rescale(d), 0.0) for old, d in zip(state.total, moved, strict=True)]
        rows = [not sum_ < self.threshold for sum_ in total]
        return rows, Sum(h, tuple(0.0 if row else sum_ for row, sum_ in zip(rows, total, strict=True)))

    def _rescale(self, distance: float) -> float:
        value = 0.0
        for c in self.coefficients:
            value = value * distance + c
        return value
