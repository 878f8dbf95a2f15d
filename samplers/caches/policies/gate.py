"""CG-Taylor's confidence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.tap import Context
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.memory import Memory
from gen.samplers.caches.lib.parts import CachePolicy, Coordinate, FeaturePredictor, Rows
from gen.samplers.caches.policies.lib.distance import relative_l1
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate(CachePolicy):
    """Trusts the predictor where it would have been right on the first block (CG-Taylor, arXiv 2508.02240).

    The probe always runs, and is predicted as well from the steps that were computed. The last step is computed.

    Attributes:
        threshold: a row is skipped if mean |predicted - real| / mean |real| of the probe is below it.
        warmup: first steps that are computed.
        predictor, coordinate: predict the probe.
        per_batch: one decision for the whole batch, on which every row then depends, as in the original.
        probe: site of the first block's output.
    """

    threshold: float = 0.008
    warmup: int = 3
    predictor: FeaturePredictor = part("samplers.caches.predictors", default=Taylor(3))
    coordinate: Coordinate = part("samplers.caches.coordinates", default=Step())
    probe: str = "hidden.0"
    per_batch: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)")

    def init(self) -> Memory:
        return Memory()

    def decide(self, context: Context, state: Memory, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Memory]:
        assert out is not None
        x = self.coordinate.value(context)
        if not state or context.step < self.warmup or context.step == context.steps - 1:
            rows = [True] * len(out)
        else:
            rows = [
                not off < self.threshold for off in relative_l1(state.predict(x, self.predictor), out, self.per_batch)
            ]
        return rows, state.update(x, out, rows, self.predictor.size) if any(rows) else state
