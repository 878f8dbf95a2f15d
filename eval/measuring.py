"""The numbers of an evaluation: its metrics, chosen and computed, and what a record shows beside them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.images import to_uint8
from gen.config.spec import Json, build, find, names, spec_of
from gen.eval.cache_comparison import CacheComparison
from gen.eval.drawn import Decoder
from gen.eval.extraction import FIRST, Rows
from gen.eval.metrics import NEEDS, Column, Estimate, Metric
from gen.eval.metrics.lib.neighbours import nearest as nearest_rows
from gen.eval.pictures import strip
from gen.eval.provenance import device_of
from gen.eval.record import FloorInfo, Measurement, Neighbours, PerClass, Restored, Speed
from gen.eval.reference import Reference, measure, measure_together
from gen.eval.throughput import InterleavedTiming, Throughput
from gen.restoration import side_by_side

__all__ = [
    "all_measurements",
    "choose",
    "floor_of",
    "neighbours",
    "one_of_each",
    "pictures",
    "plain_metrics",
    "restored",
    "spare",
    "timing",
]

T = TypeVar("T")
PICTURES = 6  # restored ones that are drawn


def spare(name: str, make: Callable[[], T]) -> T | None:
    """Return what is made; None, with a warning, if that fails: no field beside the numbers may lose them.

    Args:
        name: of the field.
        make: returns its value.
    """
    try:
        return make()
    except Exception as error:  # drawings and clocks fail in any way
        warnings.warn(f"the record's {name} is left out: {' '.join(str(error).split())}", stacklevel=2)
        return None


def choose(given: Sequence[object] | None, needs: Collection[str] = ()) -> list[Metric]:
    """Build metrics; UserError for what is none.

    Args:
        given: names, specs or objects; None for the default ones.
        needs: of metrics that are wanted, too, where the default ones are.
    """
    if given is not None:
        metrics = [check_metric(build("eval.metrics", one)) for one in given]
        keys = [column.key for metric in metrics for column in metric.columns]
        if not keys or len(set(keys)) < len(keys):
            raise UserError(f"metrics = {list(given)!r}: at least one, and each column once; these have {keys}")
        return metrics
    usual = [
        metric
        for metric in plain_metrics()
        if getattr(metric, "default", True) or (metric.needs in needs and not getattr(metric, "named", False))
    ]
    return sorted(usual, key=lambda metric: -metric.columns[0].priority)


def plain_metrics() -> list[Metric]:
    """Return every metric of gen that has no option without a default, with its defaults."""
    owners = [find(name, "eval.metrics") for name in names("eval.metrics")]
    missing = dataclasses.MISSING
    ready = [o for o in owners if all({f.default, f.default_factory} != {missing} for f in dataclasses.fields(o))]
    return [check_metric(owner()) for owner in ready]


def check_metric(metric: Any) -> Any:
    """Return a metric after a look at its declarations; UserError says what is wrong with them."""
    label, needs, columns = type(metric).__name__, getattr(metric, "needs", None), getattr(metric, "columns", None)
    if not dataclasses.is_dataclass(metric) or not callable(metric):
        raise UserError(f"{label} is no metric: it must be a frozen dataclass that can be called")
    if needs not in NEEDS:
        raise UserError(f"{label} is no metric: needs = {needs!r}. {nearest(str(needs), NEEDS)}")
    if {getattr(metric, name, False) for name in ("default", "moments", "named")} - {True, False}:
        raise UserError(f"{label} is no metric: default, moments and named are True or False")
    if not isinstance(columns, tuple) or not columns or not all(isinstance(column, Column) for column in columns):
        raise UserError(f"{label} is no metric: columns = {columns!r}, expected a tuple of Column")
    return metric


def all_measurements(
    metrics: Sequence[Metric], samples: Rows, reference: Reference
) -> tuple[tuple[Measurement, ...], tuple[PerClass, ...]]:
    """Return the numbers of all metrics, and those of each class.

    A metric that cannot be computed is left out with a warning; UserError gives the reasons if none can.

    Args:
        metrics: whose inputs can be had.
        samples: rows of the samples.
        reference: what they are compared with.
    """
    measured, per_class, reasons = list[Measurement](), list[PerClass](), []
    shared = {id(metric): found for metric, found in measure_together(metrics, lambda m: reference.inputs(m, samples))}
    spare("floors", lambda: reference.share_floors(metrics))
    for metric in metrics:
        try:
            measured += measurements(metric, samples, reference, shared.get(id(metric)))
            per_class += by_class(metric, samples, reference)
        except (UserError, RuntimeError) as error:
            key = metric.columns[0].key
            reasons.append(f"{key}: {' '.join(str(error).split()).removeprefix(f'{key}: ')}")
    if not measured:
        raise UserError("; ".join(reasons))
    for reason in reasons:
        warnings.warn(reason.replace(": ", " is left out: ", 1), stacklevel=2)
    return tuple(measured), tuple(per_class)


def measurements(
    metric: Metric, samples: Rows, reference: Reference, estimates: Sequence[Estimate] | None
) -> list[Measurement]:
    """Return the numbers of a metric, each with its floor; of estimates that are there, or else computed."""
    if estimates is None:
        estimates = measure(metric, *reference.inputs(metric, samples))
    floors = spare(f"floor of {metric.columns[0].key}", lambda: reference.floor(metric)) or [None] * len(estimates)
    spec = spec_of(metric)
    columns = zip(metric.columns, estimates, floors, strict=True)
    return [Measurement(column, spec, estimate, floor) for column, estimate, floor in columns]


def by_class(metric: Any, samples: Rows, reference: Reference) -> list[PerClass]:
    """Return a metric's numbers of each class, if it has any."""
    if not hasattr(metric, "by_class"):
        return []
    found = metric.by_class(*reference.inputs(metric, samples))
    known, names = sorted(found), samples.images.label_names
    names = reference.real.images.label_names if reference.real is not None else names
    words = tuple(names[label] if label < len(names) else str(label) for label in known)
    return [PerClass(metric.columns[0], words, tuple(found[label] for label in known))]


def timing(sampler: Decoder, how: Mapping[str, Any], batch: int, seed: int, seconds: float) -> Json:
    """Return the speed and, if there is a cache, what it saves, by the names of a record.

    Args:
        sampler: that is timed.
        how: keywords of its `sample`.
        batch: samples of a timed batch.
        seed: of the samples.
        seconds: spent on timing.
    """
    timer, pipeline = Throughput(batch=batch, seconds=seconds), sampler.pipeline
    captions = None if sampler.captions is None else sampler.captions.rows(0, batch)
    cond = captions if sampler.pairs is None else sampler.pairs.rows(0, batch)[0]

    def speed() -> Speed:
        return timer.measure(lambda b: sampler.sample(b, **how, seed=seed, batch_size=b), device_of(pipeline))

    found: Json = {"speed": spare("speed", speed)}
    if pipeline.plan(**how).cache is not None:
        comparison = CacheComparison(batch, InterleavedTiming(seconds=seconds))
        found["cache"] = spare("cache", lambda: comparison.measure(pipeline, how, seed, cond))
    return found


def pictures(samples: Rows) -> Tensor:
    """Return the first ten samples, uint8 [10, C, H, W].

    Args:
        samples: all of them.
    """
    drawn = samples.rows("first")
    return samples.images.read(range(min(FIRST, len(samples))))["images"] if drawn is None else drawn


def neighbours(samples: Rows, first: Tensor, reference: Reference) -> Neighbours | None:
    """Return the first samples beside their nearest training images; None where there are none.

    Args:
        samples: all of them.
        first: the first ones as pictures.
        reference: with the training images.
    """
    train = reference.train
    if train is None or not train.filled:
        return None
    squares, indices = nearest_rows(samples.features[: len(first)], train.features, 1)
    beside = torch.cat([train.images.read([i])["images"] for i in indices[:, 0].tolist()])
    distances = tuple(squares[:, 0].sqrt().tolist())
    return Neighbours(strip(torch.cat([first, beside], 2), 2), distances, f"features of {reference.extractor.name}")


def restored(samples: Rows, each: int) -> Restored | None:
    """Return the first samples beside what they should be, their deviations, too; None where that is not known.

    Args:
        samples: all of them.
        each: of each picture.
    """
    images, targets = (samples.rows(name) if samples.has(name) else None for name in ("images", "targets"))
    if images is None or targets is None:
        return None
    n = min(len(samples) // each, PICTURES)
    x, truth = (rows[: n * each].float().unflatten(0, (n, each)) / 127.5 - 1 for rows in (images, targets))
    low = samples.rows("measured") if samples.has("measured") else None
    seen = low[: n * each : each] if low is not None and low.ndim == 4 and low.shape[1] == images.shape[1] else None
    rows, words = side_by_side(x, seen, truth[:, 0])
    stacked = to_uint8(rows).permute(0, 2, 1, 3, 4).flatten(2, 3)  # [n, C, rows H, W]
    return Restored(strip(stacked, len(words)), words)


def floor_of(reference: Reference) -> FloorInfo | None:
    """Return the real images whose scores are the floor; None if the set is used whole.

    Args:
        reference: with its splits.
    """
    real, other = reference.real, reference.other
    if other is None or real is None:
        return None
    return FloorInfo(len(other), spare("floor.strip", lambda: strip(one_of_each(real))))


def one_of_each(real: Rows) -> Tensor:
    """Return ten images: the first of each label in turn, as the samples' labels go; without labels the first ten.

    Args:
        real: at least one.
    """
    labels = real.labels
    if labels is None:
        return real.images.read(range(min(FIRST, len(real))))["images"]
    classes = torch.unique(labels).tolist()
    of_class = [(labels == label).nonzero()[:, 0] for label in classes]
    turns = [(of_class[i % len(classes)], i // len(classes)) for i in range(FIRST)]
    return torch.cat([real.images.read([int(rows[turn % len(rows)])])["images"] for rows, turn in turns])
