"""A feature cache against the same sampler without it, on the same noise: its saving and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gen.config.spec import Json
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Compute, Context
from gen.eval.pictures import heatmap
from gen.eval.record import CacheSaving, Drift, SiteMap
from gen.eval.throughput import InterleavedTiming, median_interval
from gen.pipeline import Pipeline
from gen.samples import Samples

__all__ = ["CacheComparison", "computed_shares", "drift", "equal_steps", "uncached"]


@dataclass(frozen=True)
class CacheComparison:
    """Samples one batch with a cache and without, from the same seeds, in turns.

    Attributes:
        batch: samples.
        timing: of the two.
    """

    batch: int = 100
    timing: InterleavedTiming = field(default_factory=InterleavedTiming)

    def measure(
        self, pipeline: Pipeline, how: Mapping[str, Any], seed: int = 0, cond: Sequence[str] | Cond | None = None
    ) -> CacheSaving:
        """Measure the cache that the pipeline uses if sampled with `how`, keywords of Pipeline.sample.

        cond: as of Pipeline.sample, of the batch; None for the condition that the pipeline chooses.
        """
        plain, rest = uncached(pipeline, how)
        keys: dict[str, Any] = {"n": self.batch, "batch_size": self.batch, "seed": seed, "cond": cond}
        one = {key: value[:1] for key, value in cond.items()} if isinstance(cond, Mapping) else cond and cond[:1]

        def sample_without() -> Samples:
            return plain.sample(**rest, **keys)

        def sample_cached() -> Samples:
            return pipeline.sample(**how, **keys)

        without, cached = sample_without(), sample_cached()  # and warm
        rounds = self.timing.measure([sample_without, sample_cached], pipeline.device)
        ratio = median_interval([b / a for a, b in rounds])
        (report,) = cached.cache
        fraction = report.fraction
        leaves = plain.sample(**{**rest, "cache": LeafSites()}, n=1, seed=seed, cond=one).cache[0].sites
        sites = [site for site in report.sites if site in leaves and site != "time"]  # of tokens, not of t
        sites = sites or list(report.sites)  # a searched mask has whole blocks only
        return CacheSaving(
            batch=self.batch,
            evaluations=report.evaluations,
            full=report.full,
            fraction=fraction,
            fraction_per_row=report.fraction_per_row,
            ratio=ratio,
            speedup=ratio.map(lambda r: 1 / r),
            c=None if fraction == 1 else ratio.map(lambda r: (r - fraction) / (1 - fraction)),
            drift=drift(cached.x, without.x),
            equal_steps=equal_steps(ratio.value, pipeline.plan(**how).steps),
            memory_mb=report.memory / 2**20,
            map=SiteMap(heatmap(computed_shares(report, sites)), tuple(sites), report.steps),
        )


def uncached(pipeline: Pipeline, how: Mapping[str, Any]) -> tuple[Pipeline, Json]:
    """Return a pipeline and keywords of `sample` that use no cache; cache=None would mean the pipeline's own default.

    Args:
        pipeline: may have a cache by default.
        how: keywords of Pipeline.sample.
    """
    rest = {key: value for key, value in how.items() if key != "cache"}
    default = pipeline.sampler
    return (pipeline if default.cache is None else replace(pipeline, sampler=replace(default, cache=None))), rest


def equal_steps(ratio: float, steps: int) -> int:
    """Return the uncached steps that fit into the time of the cached loop: the largest N' with N' / N <= ratio, or 1.

    Args:
        ratio: time of the cached loop over that of the uncached one.
        steps: N, of both.
    """
    return max(1, math.floor(ratio * steps + 1e-9))


def drift(x: Tensor, without: Tensor) -> Drift:
    """Measure the difference between samples.

    Args:
        x: with a cache, [n, C, H, W], in [-1, 1].
        without: from the same noise without one.
    """
    squares = (x.double() - without.double()).square().flatten(1).mean(1)  # [n]
    n, mse = len(squares), float(squares.mean())
    rmse = math.sqrt(mse)
    se = float(squares.std()) / math.sqrt(n) / (2 * rmse) if n > 1 and rmse > 0 else 0.0  # delta method
    return Drift(rmse, se, 20 * math.log10(2 / rmse) if rmse > 0 else None, n)


def computed_shares(report: CacheReport, sites: Sequence[str]) -> Tensor:
    """Return in how many of a step's evaluations, its stages and branches, a site was computed.

    Args:
        report: of a cache.
        sites: the rows.

    Returns:
        0 .. 1, [site, step].
    """
    columns = [list(report.sites).index(site) for site in sites]
    done, seen = torch.zeros(len(sites), report.steps), torch.zeros(report.steps)
    for context, computed in zip(report.contexts, report.computed, strict=True):
        done[:, context.step] += torch.tensor([float(computed[column]) for column in columns])
        seen[context.step] += 1
    return done / seen.clamp(min=1)


@dataclass(frozen=True)
class LeafSites:
    """Stands in for a cache: computes everything, and reports the sites inside which there is no other."""

    def start(self, steps: int) -> LeafSitesSession:
        return LeafSitesSession()


class LeafSitesSession:
    """One run of it."""

    def __init__(self) -> None:
        self.leaf: dict[str, bool] = {}
        self.open: list[str] = []

    def bind(self, context: Context) -> LeafSitesSession:
        return self

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if self.open:
            self.leaf[self.open[-1]] = False
        self.leaf.setdefault(site, True)
        self.open.append(site)
        out = compute(h)
        self.open.pop()
        return out

    def report(self) -> CacheReport:
        return CacheReport(0, (), tuple(site for site, leaf in self.leaf.items() if leaf), (), ())
