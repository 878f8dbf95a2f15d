"""The last value again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gen.samplers.caches.lib.parts import FeaturePredictor

__all__ = ["Reuse"]


@dataclass(frozen=True)
class Reuse(FeaturePredictor):
    """The feature as it was last computed (FORA, Selvaraju et al. 2024; and most caches since)."""

    size: ClassVar[int] = 1
    degree: ClassVar[int] = 0

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        return [1.0]
