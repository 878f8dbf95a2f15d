"""CG-Taylor's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.tap import Context
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.memory import Memory
from gen.samplers.caches.policies.lib.policy import Policy, Rows, distance
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate(Policy):
    """Trusts the predictor where it would have been right on the first block (CG-Taylor, arXiv 2508.02240).

    The probe always runs, and is predicted as well, by `what` from the steps that were computed. A row is skipped if
    mean |predicted - real| / mean |real| < threshold. The first `warmup` steps and the last one are computed.
    """

    threshold: float = 0.008
    warmup: int = 3
    predictor: Any = part("samplers.caches.predictors", default=Taylor(3))
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    probe: str = "hidden.0"  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "predictor", build("samplers.caches.predictors", self.predictor))
        object.__setattr__(self, "coordinate", build("samplers.caches.coordinates", self.coordinate))
        if self.threshold < 0:
            raise UserError(f"gate: threshold = {self.threshold}; it must be at least 0")

    def init(self) -> Memory:
        return Memory()

    def decide(self, context: Context, state: Memory, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Memory]:
        assert out is not None
        x = self.coordinate.place(context)
        if not state or context.step < self.warmup or context.step == context.steps - 1:
            rows = [True] * len(out)
        else:
            rows = [not off < self.threshold for off in distance(state.predict(x, self.predictor), out)]
        return rows, state.update(x, out, rows, self.predictor.size) if any(rows) else state
