"""What a feature cache saves, and what it costs: against the same sampler without it, on the same noise."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Compute, Context
from gen.eval.throughput import InterleavedTiming

__all__ = ["Interval", "Report", "Saving", "drift", "equal_steps", "median_interval", "picture", "shares", "uncached"]


class Report(Protocol):
    """What a cache says of one batch: the evaluations, the sites, and which of these each evaluation computed."""

    @property
    def steps(self) -> int: ...
    @property
    def places(self) -> Sequence[Any]: ...  # each with the evaluation's step
    @property
    def sites(self) -> Sequence[str]: ...
    @property
    def computed(self) -> Sequence[Sequence[bool]]: ...  # [evaluation][site]
    @property
    def evaluations(self) -> int: ...
    @property
    def full(self) -> int: ...
    @property
    def fraction(self) -> float: ...
    @property
    def fraction_per_row(self) -> float: ...
    @property
    def memory(self) -> int: ...  # bytes


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def json(self, f: Callable[[float], float] = float) -> dict[str, float]:
        """As JSON; of f of it, if f is monotonic."""
        value, *ends = f(self.value), f(self.low), f(self.high)
        return {"value": value, "low": min(ends), "high": max(ends)}


@dataclass(frozen=True)
class Saving:
    """How to measure a cache: `batch` samples with it and without, from the same seeds, taking turns.

    The record it makes holds, of the timed batch:
    fraction F, full evaluations out of all; fraction_per_row, what it would be if no row had to wait for others;
    ratio r, the latency of the whole loop with the cache over that without, the median over turns; speedup 1 / r;
    c = (r - F) / (1 - F), the cost of a skipped evaluation in full ones, null if none was skipped;
    drift, the root mean square difference of the samples in units of [-1, 1], its standard error, and as PSNR in dB,
    null if there is none; equal_steps, see there; memory_mb, what the cache holds at the end of the loop;
    map, a picture of which sites were computed at which steps.
    """

    batch: int = 100
    turns: InterleavedTiming = field(default_factory=InterleavedTiming)

    def measure(self, pipeline: Any, how: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """The record of the cache that the pipeline uses if sampled with `how`, keywords of Pipeline.sample."""
        plain, rest = uncached(pipeline, how)
        keys = {"n": self.batch, "batch_size": self.batch, "seed": seed}

        def sample_without() -> Any:
            return plain.sample(**rest, **keys)

        def sample_cached() -> Any:
            return pipeline.sample(**how, **keys)

        without, cached = sample_without(), sample_cached()  # and warm
        turns = self.turns.measure([sample_without, sample_cached], getattr(pipeline, "device", "cpu"))
        ratio = median_interval([b / a for a, b in turns])
        (report,) = cached.cache
        fraction = report.fraction
        leaves = plain.sample(**{**rest, "cache": Outline()}, n=1, seed=seed).cache[0]
        sites = [site for site in report.sites if site in leaves and site != "time"]  # of tokens, not of t
        sites = sites or list(report.sites)  # a searched mask has whole blocks only
        return {
            "batch": self.batch,
            "evaluations": report.evaluations,
            "full": report.full,
            "fraction": fraction,
            "fraction_per_row": report.fraction_per_row,
            "ratio": ratio.json(),
            "speedup": ratio.json(lambda r: 1 / r),
            "c": None if fraction == 1 else ratio.json(lambda r: (r - fraction) / (1 - fraction)),
            "drift": drift(cached.x, without.x),
            "equal_steps": equal_steps(ratio.value, pipeline.plan(**how).steps),
            "memory_mb": report.memory / 2**20,
            "map": {"png": picture(shares(report, sites)), "sites": sites, "steps": report.steps},
        }


def uncached(pipeline: Any, how: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same pipeline and keywords without a cache; for sample(cache=None) means the pipeline's own default."""
    rest = {key: value for key, value in how.items() if key != "cache"}
    default = pipeline.sampler
    return (pipeline if default.cache is None else replace(pipeline, sampler=replace(default, cache=None))), rest


def median_interval(values: Sequence[float]) -> Interval:
    """The median, and the narrowest pair of order statistics around it that holds it with 95 % confidence.

    It assumes nothing of how the values are spread, only that they are independent: each lies above the median with
    probability 1/2. Raises UserError below 6 values, of which no pair is enough.
    """
    n, inside = len(values), sorted(values)
    outside, rank = 2 / 2**n, 0  # the chance that all lie on one side, and the rank from 0 of the lower end
    if outside > 0.05:
        raise UserError(f"{n} values: at least 6 are needed for a 95 % interval of their median")
    while outside + 2 * math.comb(n, rank + 1) / 2**n <= 0.05:
        rank += 1
        outside += 2 * math.comb(n, rank) / 2**n
    return Interval(median(inside), inside[rank], inside[n - 1 - rank])


def equal_steps(ratio: float, steps: int) -> int:
    """The steps that fit, uncached, into the time of the cached loop: the largest N' with N' / N <= ratio, or 1."""
    return max(1, math.floor(ratio * steps + 1e-9))


def drift(x: Tensor, without: Tensor) -> dict[str, Any]:
    """Of samples [n, C, H, W] from those that the same noise gives without a cache."""
    squares = (x.double() - without.double()).square().flatten(1).mean(1)  # [n]
    n, mse = len(squares), float(squares.mean())
    rmse = math.sqrt(mse)
    se = float(squares.std()) / math.sqrt(n) / (2 * rmse) if n > 1 and rmse > 0 else 0.0  # delta method
    return {"rmse": rmse, "se": se, "psnr": 20 * math.log10(2 / rmse) if rmse > 0 else None, "n": n}


def shares(report: Report, sites: Sequence[str]) -> Tensor:
    """[site, step]: in how many of the step's evaluations, its stages and branches, the site was computed; 0 .. 1."""
    columns = [list(report.sites).index(site) for site in sites]
    done, seen = torch.zeros(len(sites), report.steps), torch.zeros(report.steps)
    for place, computed in zip(report.places, report.computed, strict=True):
        done[:, place.step] += torch.tensor([float(computed[column]) for column in columns])
        seen[place.step] += 1
    return done / seen.clamp(min=1)


INK, PAPER = (62, 124, 196, 255), (128, 132, 138, 44)  # computed and not, on white as well as on black
CELL, GAP = 24, 2  # pixels of the picture, which is shown at half its size; smaller where there are many


def picture(cells: Tensor) -> str:
    """A heat map of [row, column] in 0 .. 1 with gaps between its cells, as a PNG in base64."""
    from PIL import Image

    rows, columns = cells.shape
    high = CELL if rows <= 24 else CELL // 2 if rows <= 80 else CELL // 4
    wide = max(4, min(CELL, 1000 // columns))
    sheet = Image.new("RGBA", (columns * wide - GAP, rows * high - GAP))
    for i, row in enumerate(cells.tolist()):
        for j, share in enumerate(row):
            colour = tuple(round(a + share * (b - a)) for a, b in zip(PAPER, INK, strict=True))
            sheet.paste(colour, (j * wide, i * high, (j + 1) * wide - GAP, (i + 1) * high - GAP))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Outline:
    """In a cache's place: computes everything, and reports the sites inside which there is no other."""

    def start(self, steps: int) -> Outlined:
        return Outlined()


class Outlined:
    """One run of it."""

    def __init__(self) -> None:
        self.leaf: dict[str, bool] = {}
        self.open: list[str] = []

    def bind(self, context: Context) -> Outlined:
        return self

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if self.open:
            self.leaf[self.open[-1]] = False
        self.leaf.setdefault(site, True)
        self.open.append(site)
        out = compute(h)
        self.open.pop()
        return out

    def report(self) -> tuple[str, ...]:
        return tuple(site for site, leaf in self.leaf.items() if leaf)
