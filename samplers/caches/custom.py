"""Any policy with any predictor at any sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gen.config.spec import build, part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Custom"]


@dataclass(frozen=True)
class Custom:
    """A cache put together by hand: when (a policy), what (a predictor), along (its coordinate), and where.

    sites: patterns; in a DiT "blocks.*.attn.raw" and "blocks.*.mlp.raw" are the bare modules, "blocks.*.attn" what is
    added with the gates of an earlier step, "hidden.*" the blocks' outputs, and "trunk" the last block's, one feature
    for the whole network. branches: () for all; ("uncond",) caches that branch of guidance only. base: what is
    subtracted before remembering, see Run.
    """

    policy: Any = part("samplers.caches.policies", default=Interval())
    predictor: Any = part("samplers.caches.predictors", default=Taylor())
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    sites: tuple[str, ...] = ("hidden.*",)
    branches: tuple[str, ...] = ()
    base: Literal["", "input", "probe"] = ""

    def __post_init__(self) -> None:
        for name, folder in (("policy", "policies"), ("predictor", "predictors"), ("coordinate", "coordinates")):
            object.__setattr__(self, name, build(f"samplers.caches.{folder}", getattr(self, name)))
        self.start(1)  # says at once what does not go together

    def start(self, steps: int) -> Run:
        options: dict[str, Any] = {"coordinate": self.coordinate, "branches": self.branches, "base": self.base}
        return Run(steps, self.policy, self.predictor, self.sites, **options)
