"""Any policy with any predictor at any sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gen.config.spec import part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.parts import CachePolicy, Coordinate, FeaturePredictor
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Custom"]


@dataclass(frozen=True)
class Custom(CachePreset):
    """A cache put together by hand.

    Attributes:
        policy: when to compute.
        predictor: what to use otherwise.
        coordinate: along what it extrapolates.
        sites: patterns; in a DiT "blocks.*.attn.raw" and "blocks.*.mlp.raw" are the bare modules, "blocks.*.attn" what
            is added with the gates of an earlier step, "hidden.*" the blocks' outputs, and "trunk" the last block's,
            one feature for the whole network.
        branches: () for all; ("uncond",) caches that branch of guidance only.
        subtract: from a site's output before it is remembered: nothing, the site's input, or the policy's probe.
    """

    policy: CachePolicy = part("samplers.caches.policies", default=Interval())
    predictor: FeaturePredictor = part("samplers.caches.predictors", default=Taylor())
    coordinate: Coordinate = part("samplers.caches.coordinates", default=Step())
    sites: tuple[str, ...] = ("hidden.*",)
    branches: tuple[str, ...] = ()
    subtract: Literal["none", "input", "probe"] = "none"

    def start(self, steps: int) -> SiteCacheSession:
        return SiteCacheSession(
            steps,
            self.policy,
            self.predictor,
            self.sites,
            coordinate=self.coordinate,
            branches=self.branches,
            subtract=self.subtract,
        )
