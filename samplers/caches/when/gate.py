"""CG-Taylor's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gen.errors import UserError
from gen.samplers.caches._memory import Memory
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when._policy import Policy, Rows, distance
from gen.spec import build, part
from gen.tap import Context

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate(Policy):
    """Trusts the predictor where it would have been right on the first block (CG-Taylor, arXiv 2508.02240).

    The probe always runs, and is predicted as well, by `what` from the steps that were computed. A row is skipped if
    mean |predicted - real| / mean |real| < threshold. The first `warmup` steps and the last one are computed.
    """

    threshold: float = 0.008
    warmup: int = 3
    what: Any = part("samplers.caches.what", default=Taylor(3))
    along: Any = part("samplers.caches.along", default=Step())
    probe: str = "hidden.0"  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", build("samplers.caches.what", self.what))
        object.__setattr__(self, "along", build("samplers.caches.along", self.along))
        if self.threshold < 0:
            raise UserError(f"gate: threshold = {self.threshold}; it must be at least 0")

    def init(self) -> Memory:
        return Memory()

    def decide(self, context: Context, state: Memory, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Memory]:
        assert out is not None
        x = self.along.place(context)
        if not state or context.step < self.warmup or context.step == context.steps - 1:
            rows = [True] * len(out)
        else:
            rows = [not off < self.threshold for off in distance(state.predict(x, self.what), out)]
        return rows, state.update(x, out, rows, self.what.size) if any(rows) else state
