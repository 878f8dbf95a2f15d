"""TeaCache's indicator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.parts import CachePolicy, Rows
from gen.samplers.caches.policies.lib.distance import relative_l1

__all__ = ["Indicator"]


class State(NamedTuple):
    """The indicator one step ago [B, ...], and each row's sum since it was last computed."""

    before: Tensor
    total: tuple[float, ...]


@dataclass(frozen=True)
class Indicator(CachePolicy):
    """Skips until the input of the first attention has moved far enough in all (TeaCache, Liu et al. 2024).

    Each step adds p(mean |v - v'| / mean |v'|), v being the probe's input, normed and modulated by time, and v' the
    same one step ago. The first and the last step are computed.

    Attributes:
        threshold: a row is computed, and its sum starts anew, when the sum reaches it.
        coefficients: of the polynomial p, highest power first, fitted for each model (the published one for FLUX is
            498.65, -283.78, 55.86, -3.82, 0.264); (1, 0) is the distance itself. Below zero it counts as zero.
        warmup: first steps that are computed.
        per_batch: one decision for the whole batch, on which every row then depends, as in the original.
        probe: site of the first attention.
    """

    early: ClassVar[bool] = True
    threshold: float = 0.15
    coefficients: tuple[float, ...] = (1.0, 0.0)
    warmup: int = 1
    probe: str = "blocks.0.attn.raw"
    per_batch: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)")
        if not self.coefficients:
            raise UserError("Indicator: coefficients = (); a polynomial has at least one")

    def decide(self, context: Context, state: State | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, State]:
        assert h is not None
        ends = context.step < self.warmup or context.step == context.steps - 1
        if state is None or ends:
            rows = 1 if self.per_batch else len(h)
            return [True] * rows, State(h, (0.0,) * rows)
        moved = relative_l1(h, state.before, self.per_batch)
        total = [old + max(self._rescale(d), 0.0) for old, d in zip(state.total, moved, strict=True)]
        asking = [not sum_ < self.threshold for sum_ in total]
        return asking, State(h, tuple(0.0 if row else sum_ for row, sum_ in zip(asking, total, strict=True)))

    def _rescale(self, distance: float) -> float:
        value = 0.0
        for c in self.coefficients:
            value = value * distance + c
        return value
