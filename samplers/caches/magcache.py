"""MagCache."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.report import Report
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.magnitude import Magnitude
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["MagCache", "Ratios"]


@dataclass(frozen=True)
class MagCache:
    """Uses again what all blocks add while its size, as once calibrated, has drifted little (Ma et al. 2025).

    Without ratios a run calibrates: it computes everything and measures, and `calibrated(run.report())` is the cache to
    use from then on. threshold = 0 turns it off.
    """

    ratios: tuple[float, ...] = ()
    threshold: float = 0.24
    longest: int = 5
    retention: float = 0.2
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        self.start(1)

    def start(self, steps: int) -> Run:
        policy = Magnitude(self.ratios, self.threshold, self.longest, self.retention)
        study = None if self.ratios else Ratios(steps)
        return Run(steps, policy, Reuse(), self.sites, base="input", study=study)

    def calibrated(self, report: Report) -> MagCache:
        """This cache with the ratios that a run without any has measured."""
        if "ratios" not in report.measured:
            raise UserError("MagCache: this report measured no ratios; calibrate with a run of MagCache(ratios=())")
        return replace(self, ratios=tuple(report.measured["ratios"]))


@dataclass
class Ratios:
    """Measures, at each step, the mean of |r_t| / |r_(t-1)| over tokens, rows, sites, branches and stages.

    |r| is the norm over the last dimension, the token's width in a transformer.
    """

    steps: int
    before: dict[tuple[str, int, str], tuple[int, Tensor]] = field(default_factory=dict)
    found: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def see(self, context: Context, site: str, feature: Tensor) -> None:
        key, size = (context.branch, context.stage, site), feature.detach().double().norm(dim=-1)
        step, old = self.before.get(key, (-1, size))
        if step == context.step - 1:
            ratio = float((size / old.clamp(min=1e-30)).mean()) if bool((old > 0).any()) else 1.0
            self.found[context.step].append(ratio)
        self.before[key] = (context.step, size)

    def result(self) -> dict[str, list[float]]:
        means = [self.found.get(step) or [1.0] for step in range(self.steps)]
        return {"ratios": [sum(ratios) / len(ratios) for ratios in means]}
