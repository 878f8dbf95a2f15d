"""MagCache."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.magnitude import Magnitude
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["MagCache", "RatioCalibrator"]


@dataclass(frozen=True)
class MagCache(CachePreset):
    """Uses again what all blocks add while its size, as once calibrated, has drifted little (Ma et al. 2025).

    Without ratios a loop calibrates: it computes everything and measures, and `calibrated(session.report())` is the
    cache to use from then on.

    Attributes:
        ratios, threshold, longest, retention: see policies/magnitude.py; threshold = 0 turns it off.
        sites: patterns of the sites to cache.
    """

    ratios: tuple[float, ...] = ()
    threshold: float = 0.24
    longest: int = 5
    retention: float = 0.2
    sites: tuple[str, ...] = ("trunk",)

    def start(self, steps: int) -> SiteCacheSession:
        policy = Magnitude(self.ratios, self.threshold, self.longest, self.retention)
        calibrator = None if self.ratios else RatioCalibrator(steps)
        return SiteCacheSession(steps, policy, Reuse(), self.sites, subtract="input", calibrator=calibrator)

    def calibrated(self, report: CacheReport) -> MagCache:
        """Return this cache with the ratios that a loop without any has measured."""
        if "ratios" not in report.calibration:
            raise UserError("MagCache: this report measured no ratios; calibrate with a loop of MagCache(ratios=())")
        return replace(self, ratios=tuple(report.calibration["ratios"]))


@dataclass
class RatioCalibrator:
    """The mean of |r_t| / |r_(t-1)| at each step, over tokens, rows, sites, branches and stages.

    |r| is the norm over the last dimension, the token's width in a transformer.

    Attributes:
        steps: of the loop.
        before: step and |r| of the newest feature, by branch, stage and site.
        ratios: measured so far, by step.
    """

    steps: int
    before: dict[tuple[str, int, str], tuple[int, Tensor]] = field(default_factory=dict)
    ratios: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def observe(self, context: Context, site: str, feature: Tensor) -> None:
        key, size = (context.branch, context.stage, site), feature.detach().double().norm(dim=-1)
        step, old = self.before.get(key, (-1, size))
        if step == context.step - 1:
            ratio = float((size / old.clamp(min=1e-30)).mean()) if bool((old > 0).any()) else 1.0
            self.ratios[context.step].append(ratio)
        self.before[key] = (context.step, size)

    def result(self) -> dict[str, list[float]]:
        means = [self.ratios.get(step) or [1.0] for step in range(self.steps)]
        return {"ratios": [sum(ratios) / len(ratios) for ratios in means]}
