"""Any policy with any predictor at any sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gen.samplers.caches._run import Run
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when.interval import Interval
from gen.spec import build, part

__all__ = ["Custom"]


@dataclass(frozen=True)
class Custom:
    """A cache put together by hand: when (a policy), what (a predictor), along (its coordinate), and where.

    sites: patterns; in a DiT "blocks.*.attn.raw" and "blocks.*.mlp.raw" are the bare modules, "blocks.*.attn" what is
    added with the gates of an earlier step, "hidden.*" the blocks' outputs, and "trunk" the last block's, one feature
    for the whole network. branches: () for all; ("uncond",) caches that branch of guidance only. base: what is
    subtracted before remembering, see Run.
    """

    when: Any = part("samplers.caches.when", default=Interval())
    what: Any = part("samplers.caches.what", default=Taylor())
    along: Any = part("samplers.caches.along", default=Step())
    sites: tuple[str, ...] = ("hidden.*",)
    branches: tuple[str, ...] = ()
    base: Literal["", "input", "probe"] = ""

    def __post_init__(self) -> None:
        for name in ("when", "what", "along"):
            object.__setattr__(self, name, build(f"samplers.caches.{name}", getattr(self, name)))
        self.start(1)  # says at once what does not go together

    def start(self, steps: int) -> Run:
        when, what = self.when, self.what
        return Run(steps, when, what, self.sites, along=self.along, branches=self.branches, base=self.base)
