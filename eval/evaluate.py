"""One evaluation: samples of a pipeline against real images, as a record that anyone can check and repeat."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest, shown
from gen.config.fields import check_arguments
from gen.config.images import to_uint8
from gen.config.spec import Json, build, find, names, spec_of
from gen.config.trust import allowing, check_trusted, external_names, names_from
from gen.data.lib.learned import learned_data
from gen.eval.cache_comparison import CacheComparison
from gen.eval.metrics import NEEDS, Column, Metric
from gen.eval.pictures import strip
from gen.eval.provenance import checkpoint, command, device_of, sampler_spec, setting, short
from gen.eval.record import ExtractorInfo, FloorInfo, Measurement, Record, ReferenceInfo, Speed, write_record
from gen.eval.reference import RealImages, Reference, measure
from gen.eval.rows import IndexedRows
from gen.eval.throughput import InterleavedTiming, Throughput
from gen.pipeline import Pipeline, Samples, load_images
from gen.training.distributed import broadcast, gather, is_main, share
from gen.training.log import ProgressBar

__all__ = ["evaluate"]

T = TypeVar("T")
ROUNDING = "uint8, clamped, half to even"
STRIP = 10  # samples shown in a row of the leaderboard


@check_arguments(n=f"[{STRIP}, 10000000]", batch_size="[1, inf)", seconds="(0, inf)", timed="[1, inf)")
def evaluate(
    pipeline: Any,
    *,
    metrics: Sequence[object] | None = None,
    data: object = None,
    split: str = "test",
    n: int = 1000,
    solver: object = None,
    steps: int | None = None,
    grid: object = None,
    guide: object = None,
    cache: object = None,
    seed: int = 0,
    extractor: object = None,
    label: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 250,
    seconds: float = 2.0,
    timed: int = 100,
    autoencoder: object = None,
    quiet: bool = True,
    allow: Sequence[str] = (),
) -> Record:
    """Measure quality, with its uncertainty, and speed of n samples of a pipeline, or of the model in a run folder.

    Args:
        pipeline: Pipeline, or the path of a run folder.
        metrics: names, specs or objects of metrics (see gen.eval.metrics), the one that ranks a leaderboard first; None
            for all of the folder whose inputs can be had.
        data: name, spec or object of a data set, or a Reference already opened with its split and extractor, to share
            it between evaluations; None for what the model was trained on, and the digits for a pipeline that has none.
            A file or folder named here is used whole, see Reference.open.
        split: "train" or "test", the images that samples are compared with, or "all".
        n: samples, at least 10.
        solver, steps, grid, guide, cache: as Pipeline.sample takes them.
        seed: sample i depends on it and on i alone.
        extractor: name, spec or object of gen.eval.features; None for digits_cnn where images are [1, 8, 8], else
            pixels.
        label: the row's name on a leaderboard; the run's by default.
        out: folder that the record is written to; RUN/eval for a run folder, else none.
        batch_size: changes nothing but speed and memory.
        seconds: spent on timing.
        timed: samples in a timed batch, at most; no more than batch_size.
        autoencoder: that decodes latents, as Pipeline.decoded takes it; None for a model of pictures.
        quiet: False shows progress on the terminal.
        allow: packages whose names in the run folder are followed, see gen.load.

    Returns:
        The record; under a launcher of several processes, which share out the samples, the same in all of them.

    Raises:
        UserError: if what samples are compared with does not fit them, or an input of a metric cannot be had.
    """
    folder = Path(pipeline) if isinstance(pipeline, (str, Path)) else None
    pipeline = load_images(pipeline, allow=allow) if folder is not None else check_pipeline(pipeline)
    chosen = choose(metrics)
    sampler = Decoder(pipeline, autoencoder)
    data = own_data(pipeline, allow) if data is None else data
    reference = data if isinstance(data, Reference) else Reference.open(data, split, extractor, batch_size)
    check_shape(pipeline.name, sampler.shape, reference)
    how = {"solver": solver, "steps": steps, "grid": grid, "guide": guide, "cache": cache}
    how = {key: value for key, value in how.items() if value is not None}
    target = Path(out) if out is not None else folder / "eval" if folder is not None else None
    spec = recordable(sampler, how, target)
    samples = SampledRows(sampler, reference, chosen, strict=metrics is not None)
    samples.draw(how, n, seed, batch_size, quiet)
    if not samples.gathered():  # another process's work from here on
        return broadcast(cast(Record, None), sampler.collective)
    options = {**how, "n": n, "seed": seed, "label": label, "autoencoder": sampler.spec}
    record = Record(
        run=pipeline.name,
        label=label or pipeline.name,
        checkpoint=checkpoint(pipeline),
        sampler=spec,
        nfe=samples.evaluations / n,
        n=n,
        seed=seed,
        **protocol(reference, pipeline.classes),
        metrics=all_measurements(samples.metrics, samples.kept, reference),
        floor=floor_of(reference),
        **timing(sampler, how, min(timed, n, batch_size), seed, seconds),
        **setting(pipeline),
        command=spare("command", lambda: command(pipeline, folder or pipeline.folder, reference, metrics, options)),
        strip=spare("strip", lambda: strip(samples.first)),
    )
    if target is not None and is_main():
        spare("file", lambda: write_record(record, target))
    return broadcast(record, sampler.collective)


def check_pipeline(pipeline: Any) -> Pipeline:
    if isinstance(pipeline, type) or not hasattr(pipeline, "sample"):
        raise UserError(f"evaluate: pipeline: got {shown(pipeline)}, expected a Pipeline or the folder of a run")
    return cast(Pipeline, pipeline)


def recordable(sampler: Decoder, how: Mapping[str, Any], target: Path | None) -> Json:
    """Return the sampler's spec; UserError or OSError, before the work, if no record could hold it or be written."""
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    try:
        spec = sampler_spec(sampler.pipeline, how)
        spec |= {} if sampler.spec is None else {"autoencoder": sampler.spec}
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"evaluate: the sampler {shown(how)} has no spec to record: {error}") from error
    return spec


def spare(name: str, make: Callable[[], T]) -> T | None:
    """Return what is made; None, with a warning, if that fails: no field beside the numbers may lose them."""
    try:
        return make()
    except Exception as error:  # drawings and clocks fail in any way
        warnings.warn(f"the record's {name} is left out: {' '.join(str(error).split())}", stacklevel=2)
        return None


def own_data(pipeline: Pipeline, allow: Sequence[str] = ()) -> object:
    """Return the spec of the real data that a pipeline's model learned; "digits" where there is none."""
    info = getattr(pipeline, "info", None) or {}
    data = learned_data(info)
    if data.get("name") == "pairs":
        raise UserError(f"{pipeline.name} learned pairs of a teacher that is not there: give the real data")
    if data and data != info["run"]["data"]:  # names of the run itself were checked when it was loaded
        with names_from(f"the teacher of {pipeline.name}"), allowing(allow):
            for name in external_names(data):
                check_trusted(name)
    return data or "digits"


def choose(given: Sequence[object] | None) -> list[Metric]:
    """Build the metrics that were asked for, or the default ones of the folder; UserError for what is none."""
    if given is not None:
        metrics = [check_metric(build("eval.metrics", one)) for one in given]
        keys = [column.key for metric in metrics for column in metric.columns]
        if not keys or len(set(keys)) < len(keys):
            raise UserError(f"metrics = {list(given)!r}: at least one, and each column once; these have {keys}")
        return metrics
    owners = [find(name, "eval.metrics") for name in names("eval.metrics")]
    missing = dataclasses.MISSING
    ready = [o for o in owners if all({f.default, f.default_factory} != {missing} for f in dataclasses.fields(o))]
    usual = [check_metric(owner()) for owner in ready if getattr(owner, "default", True)]
    return sorted(usual, key=lambda metric: -metric.columns[0].priority)


def check_metric(metric: Any) -> Any:
    """Return a metric after a look at its declarations; UserError says what is wrong with them."""
    label, needs, columns = type(metric).__name__, getattr(metric, "needs", None), getattr(metric, "columns", None)
    if not dataclasses.is_dataclass(metric) or not callable(metric):
        raise UserError(f"{label} is no metric: it must be a frozen dataclass that can be called")
    if needs not in NEEDS:
        raise UserError(f"{label} is no metric: needs = {needs!r}. {nearest(str(needs), NEEDS)}")
    if {getattr(metric, "default", True), getattr(metric, "moments", False)} - {True, False}:
        raise UserError(f"{label} is no metric: default and moments are True or False")
    if not isinstance(columns, tuple) or not columns or not all(isinstance(column, Column) for column in columns):
        raise UserError(f"{label} is no metric: columns = {columns!r}, expected a tuple of Column")
    return metric


def check_shape(name: str, shape: Sequence[int], reference: Reference) -> None:
    ours, real = list(shape), list(reference.real.images.shape[1:])
    if ours != real:
        raise UserError(f"{name} makes images {ours}, {reference.data['name']} holds {real}: not comparable")


class Decoder:
    """A pipeline whose samples are pictures: its own, or latents that an autoencoder decodes.

    Raises UserError, before anything is sampled, for a pipeline whose samples are none.

    Attributes:
        pipeline: that is sampled.
        spec: of the autoencoder; None without one.
        shape: of one picture, (C, H, W).
        collective: whether processes compute each sample together.
    """

    def __init__(self, pipeline: Pipeline, autoencoder: object):
        self.pipeline, self.coder, self.shape = pipeline, None, tuple(pipeline.shape)
        self.collective = getattr(getattr(pipeline, "engine", None), "collective", False)
        folder = isinstance(autoencoder, (str, Path)) and Path(autoencoder).is_dir()
        autoencoder = {"name": "diffusers", "folder": str(autoencoder)} if folder else autoencoder
        self.spec = None
        if autoencoder is not None:
            self.coder, self.spec = pipeline.coder(autoencoder), short(autoencoder)
            latent = torch.zeros(1, *pipeline.shape, device=pipeline.device)
            self.shape = tuple(pipeline.decoded(Samples(latent.cpu(), {}, 0.0, 0.0), self.coder).x.shape[1:])
        elif reason := getattr(pipeline, "no_pictures", ""):
            raise UserError(reason)

    def sample(self, n: int, **how: Any) -> Samples:
        samples = self.pipeline.sample(n, **how)
        return samples if self.coder is None else self.pipeline.decoded(samples, self.coder)


class SampledRows:
    """Samples of a pipeline, of which the rows are kept that metrics need.

    metrics: those that can be computed; with `strict` all, or UserError with the reason. kept: the rows.
    first: the first ten samples, uint8. evaluations: of the network, over all samples.
    """

    def __init__(self, sampler: Decoder, reference: Reference, metrics: Sequence[Metric], strict: bool):
        self.sampler, self.reference, self.metrics, self.strict = sampler, reference, list(metrics), strict
        self.evaluations = 0.0

    def draw(self, how: Mapping[str, Any], n: int, seed: int, batch_size: int, quiet: bool) -> None:
        """Sample this process's share of n images in batches."""
        rows = share(n, self.sampler.collective)
        bar = ProgressBar(f"{self.sampler.pipeline.name}, samples", len(rows), quiet=quiet or not is_main())
        for start in range(rows.start, rows.stop, batch_size):
            size = min(batch_size, rows.stop - start)
            samples = self.sampler.sample(size, **how, seed=seed, batch_size=size, start=start)
            images = samples.uint8()
            if start == rows.start:
                self._prepare(samples)
                self.first = images[:0]
            views = {name: self._view(name, samples, images) for name in self.kept.names}
            self.kept.update(torch.arange(start, start + size), **views)
            self.evaluations += samples.nfe * size
            self.first = torch.cat([self.first, images[: STRIP - len(self.first)]])
            bar.advance(size)
        bar.close()

    def gathered(self) -> bool:
        """Take over what all processes drew, in the first of them; return whether this one is that."""
        names, collective = ("index", *self.kept.names), self.sampler.collective
        parts = gather(({name: getattr(self.kept, name) for name in names}, self.evaluations, self.first), collective)
        if not parts:
            return False
        for name in names:
            setattr(self.kept, name, [rows for kept, _, _ in parts for rows in kept[name]])
        self.evaluations = sum(evaluations for _, evaluations, _ in parts)
        self.first = torch.cat([first for _, _, first in parts])[:STRIP]
        return True

    def _prepare(self, samples: Samples) -> None:
        """Leave out, or refuse, metrics whose inputs the samples lack, and allocate the rows of the others."""
        there = [name for name, key in (("labels", "y"), ("targets", "target")) if key in samples.cond]
        for metric in tuple(self.metrics):
            reason = self.reference.obstacle(metric.needs, there)
            if reason is not None and self.strict:
                raise UserError(f"{metric.columns[0].key} needs {metric.needs}, but {reason}")
            if reason is not None:
                self.metrics.remove(metric)
        own = [one for m in self.metrics for one in NEEDS[m.needs] if "." not in one]
        names = ["features" if one == "logits" else one.removesuffix("?") for one in own]
        self.kept = IndexedRows(tuple(name for name in dict.fromkeys(names) if name in {"features", "images", *there}))

    def _view(self, name: str, samples: Samples, images: Tensor) -> Tensor:
        if name == "labels":
            return samples.cond["y"]
        if name == "targets":
            return to_uint8(samples.cond["target"])
        return images if name == "images" else self.reference.extractor(images)


def all_measurements(metrics: Sequence[Metric], kept: IndexedRows, reference: Reference) -> tuple[Measurement, ...]:
    """Return the numbers of all metrics; one that cannot be computed is left out with a warning.

    UserError gives the reasons if none can.
    """
    measured, reasons = [], []
    for metric in metrics:
        try:
            measured += measurements(metric, kept, reference)
        except (UserError, RuntimeError) as error:
            reasons.append(" ".join(str(error).split()))
            warnings.warn(f"{metric.columns[0].key} is left out: {reasons[-1]}", stacklevel=2)
    if not measured:
        raise UserError("; ".join(reasons) or "no metric can be computed from these samples")
    return tuple(measured)


def measurements(metric: Metric, kept: IndexedRows, reference: Reference) -> list[Measurement]:
    """Return the numbers of a metric, each with its floor."""
    estimates = measure(metric, *reference.inputs(metric.needs, kept))
    floors = spare(f"floor of {metric.columns[0].key}", lambda: reference.floor(metric)) or [None] * len(estimates)
    spec = spec_of(metric)
    columns = zip(metric.columns, estimates, floors, strict=True)
    return [Measurement(column, spec, estimate, floor) for column, estimate, floor in columns]


def timing(sampler: Decoder, how: Mapping[str, Any], batch: int, seed: int, seconds: float) -> Json:
    """Return the speed and, if there is a cache, what it saves."""
    timer, pipeline = Throughput(batch=batch, seconds=seconds), sampler.pipeline

    def speed() -> Speed:
        return timer.measure(lambda b: sampler.sample(b, **how, seed=seed, batch_size=b), device_of(pipeline))

    found: Json = {"speed": spare("speed", speed)}
    if pipeline.plan(**how).cache is not None:
        comparison = CacheComparison(batch, InterleavedTiming(seconds=seconds))
        found["cache"] = spare("cache", lambda: comparison.measure(pipeline, how, seed))
    return found


def protocol(reference: Reference, classes: int) -> Json:
    """Return what two records must share to be compared, beside n."""
    extractor, real = reference.extractor, reference.real
    return {
        "reference": ReferenceInfo(
            reference.data,
            reference.split,
            len(real.images),
            tuple(real.images.shape[1:]),
            real.fingerprint,
            reference.other.fingerprint if reference.other else "",
        ),
        "extractor": ExtractorInfo(extractor.name, extractor.sha256, real.features.shape[1]),
        "rounding": ROUNDING,
        "labels": f"balanced, i mod {classes}" if classes else "none",
    }


def floor_of(reference: Reference) -> FloorInfo | None:
    """Return the real images whose scores are the floor; None if the set is used whole."""
    if reference.other is None:
        return None
    return FloorInfo(len(reference.other.images), spare("floor.strip", lambda: strip(one_of_each(reference.real))))


def one_of_each(real: RealImages) -> Tensor:
    """Return ten images: the first of each label in turn, as the samples' labels go; without labels the first ten."""
    if real.labels is None:
        return real.images[:STRIP]
    classes = torch.unique(real.labels).tolist()
    of_class = [(real.labels == label).nonzero()[:, 0] for label in classes]
    turns = [(of_class[i % len(classes)], i // len(classes)) for i in range(STRIP)]
    return real.images[[int(rows[turn % len(rows)]) for rows, turn in turns]]
