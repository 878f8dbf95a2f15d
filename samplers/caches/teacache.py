"""TeaCache."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.indicator import Indicator
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["TeaCache"]


@dataclass(frozen=True)
class TeaCache:
    """Uses again what all blocks add until the first block's modulated input has moved far enough (Liu et al. 2024).

    coefficients: of the polynomial fitted to a model, highest power first, see Indicator. threshold = 0 turns it off.
    """

    threshold: float = 0.15
    coefficients: tuple[float, ...] = (1.0, 0.0)
    warmup: int = 1
    first: str = "blocks.0.attn.raw"
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        self.start(1)

    def start(self, steps: int) -> Run:
        policy = Indicator(self.threshold, self.coefficients, self.warmup, self.first)
        return Run(steps, policy, Reuse(), self.sites, base="input")
