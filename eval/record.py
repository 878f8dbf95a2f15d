"""Evaluation records: what was measured and how, as one checked dataclass. Reading them needs no torch."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from gen.config.errors import UserError, nearest
from gen.config.formats import NEWEST, check_format
from gen.config.spec import Json, convert, digest, is_sealed, sealed, spec_of
from gen.config.writing import write_text
from gen.eval.estimate import Estimate
from gen.eval.metrics import Column

__all__ = [
    "SCHEMA",
    "UNKNOWN",
    "CacheSaving",
    "CaptionsInfo",
    "Drift",
    "ExtractorInfo",
    "FloorInfo",
    "Interval",
    "Measurement",
    "Neighbours",
    "PerClass",
    "Record",
    "ReferenceInfo",
    "SamplesInfo",
    "SiteMap",
    "Speed",
    "from_json",
    "read_as",
    "record_folder",
    "to_json",
    "write_record",
]

SCHEMA = NEWEST["record"]
RUN_MARKS = ("run.json", "manifest.json", "checkpoints", "final", "model_index.json")  # of which a run's folder has one
UNKNOWN = "unknown"  # rounding and labels of samples that another tool drew
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """A number that was measured.

    Attributes:
        column: its declaration, as the metric's class has it.
        metric: spec of the metric, options included.
        estimate: the number of the samples.
        floor: the same number of real images; None where they have none.
    """

    column: Column
    metric: Json
    estimate: Estimate
    floor: Estimate | None = None

    def same_column(self, other: Measurement) -> bool:
        """Return whether two numbers may stand in one column: the same one of the same metric with the same options."""
        return (self.column.key, self.metric) == (other.column.key, other.metric)


@dataclass(frozen=True)
class ReferenceInfo:
    """The real images that samples were compared with.

    Attributes:
        data: spec of the data set, or {"name": file, "path": ...} of what else they are.
        split: "train", "test" or "all"; "statistics" where means and covariances alone are known.
        n: number of images; None if the statistics do not say.
        shape: of one, (C, H, W); None if the statistics do not say.
        fingerprint: digest of the split's content.
        other: digest of the training images, or of the other split's content; "" without them.
        assumed: what was assumed where the statistics do not say with which extractor they were computed; "" else.
    """

    data: Json
    split: str
    n: int | None
    shape: tuple[int, ...] | None
    fingerprint: str
    other: str = ""
    assumed: str = ""

    @property
    def name(self) -> str:
        """What the data are called: their folder or file, where they have one, else their kind."""
        return Path(str(self.data["path"])).name if self.data.get("path") else str(self.data.get("name", "?"))

    @property
    def part(self) -> str:
        """What of the data it is, to stand behind their name: ", test split"; "" for all of it."""
        return {"all": "", "statistics": ", statistics"}.get(self.split, f", {self.split} split")


@dataclass(frozen=True)
class SamplesInfo:
    """The samples as they were given.

    Attributes:
        kind: "run", "pipeline", "folder", "zip", "npz", "npy", "safetensors", "tensor" or "data".
        format: of the pictures: "png", "jpeg (lossy)", "uint8 array"; "" for those that were drawn.
        available: number there were, of which n were chosen at random with the record's seed; None if all were taken.
        fingerprint: digest of what was taken, in order; "" for those that were drawn.
        counts: number of samples with each label, from 0; () without labels.
    """

    kind: str
    format: str = ""
    available: int | None = None
    fingerprint: str = ""
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class CaptionsInfo:
    """The captions that samples were drawn of; sample i has caption i mod n.

    Attributes:
        source: in words, such as the name of a file.
        n: number of captions.
        fingerprint: digest of the captions, in order.
    """

    source: str
    n: int
    fingerprint: str


@dataclass(frozen=True)
class ExtractorInfo:
    """The identity of a feature extractor.

    Attributes:
        name: network, layer, resize rule and dtype.
        sha256: of the weights' file; "" without weights.
        dim: width of the features.
    """

    name: str
    sha256: str
    dim: int


@dataclass(frozen=True)
class FloorInfo:
    """The real images whose scores are the floor.

    Attributes:
        n: number of images of the other split.
        strip: ten of them, a PNG in base64.
    """

    n: int
    strip: str | None = None


@dataclass(frozen=True)
class Speed:
    """A measured speed.

    Attributes:
        images_per_second: 1000 / ms_per_image.
        ms_per_image: median over the blocks.
        p10, p90: percentiles over the blocks, ms per image.
        batch: images per block.
        blocks: timed blocks.
        warmup: blocks thrown away before.
        steady: whether the last of those agreed.
        nfe: network evaluations per image, counted; None if the sampler does not count.
        peak_mb: the most memory in MiB, of the device, or on a CPU of the whole process so far.
        device: device string.
    """

    images_per_second: float
    ms_per_image: float
    p10: float | None = None
    p90: float | None = None
    batch: int | None = None
    blocks: int | None = None
    warmup: int | None = None
    steady: bool | None = None
    nfe: float | None = None
    peak_mb: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % confidence interval.

    Attributes:
        value: the median.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def map(self, f: Callable[[float], float]) -> Interval:
        """Return the interval of f, a monotonic function, of the same quantity."""
        ends = f(self.low), f(self.high)
        return Interval(f(self.value), min(ends), max(ends))


@dataclass(frozen=True)
class Drift:
    """The difference between samples with a cache and without, from the same noise.

    Attributes:
        rmse: root mean square, of values in [-1, 1].
        se: its standard error.
        psnr: the same in dB; None if there is no difference.
        n: samples compared.
    """

    rmse: float
    se: float
    psnr: float | None
    n: int

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.rmse, self.se, self.n)


@dataclass(frozen=True)
class SiteMap:
    """A picture of which sites of the network were computed at which steps.

    Attributes:
        png: rows are sites, columns steps; base64.
        sites: names of its rows.
        steps: number of its columns.
    """

    png: str
    sites: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class CacheSaving:
    """The cost and the saving of a feature cache, measured on one batch against the same sampler without it.

    Attributes:
        fraction: F, full evaluations out of all.
        speedup: 1 / ratio.
        drift: of the samples.
        equal_steps: uncached steps that fit into the time of the cached loop.
        ratio: r, latency of the whole loop with the cache over that without.
        c: (r - F) / (1 - F), the cost of a skipped evaluation in full ones; None if none was skipped.
        batch: samples.
        evaluations: of the network, for each sample.
        full: of these, the ones that computed everything.
        fraction_per_row: what F would be if no row had to wait for others.
        memory_mb: MiB that the cache holds at the end of the loop.
        map: of what was computed.
    """

    fraction: float
    speedup: Interval | None = None
    drift: Drift | None = None
    equal_steps: int | None = None
    ratio: Interval | None = None
    c: Interval | None = None
    batch: int | None = None
    evaluations: int | None = None
    full: int | None = None
    fraction_per_row: float | None = None
    memory_mb: float | None = None
    map: SiteMap | None = None


@dataclass(frozen=True)
class PerClass:
    """A number of each class.

    Attributes:
        column: its declaration.
        classes: names of the classes.
        estimates: the numbers, in the order of the classes; None for a class that has none.
    """

    column: Column
    classes: tuple[str, ...]
    estimates: tuple[Estimate | None, ...]

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.estimates):
            raise UserError(
                f"{self.column.key}: {len(self.estimates)} numbers of {len(self.classes)} classes; allowed: one each"
            )


@dataclass(frozen=True)
class Neighbours:
    """Samples beside the training images that are nearest to them.

    Attributes:
        strip: a PNG in base64: samples above, under each its nearest training image.
        distances: of the pairs, from the left.
        space: where they are nearest, in words: "features of digits_cnn".
    """

    strip: str
    distances: tuple[float, ...]
    space: str


@dataclass(frozen=True)
class Restored:
    """Degraded pictures, what they were, and samples that restore them.

    Attributes:
        strip: a PNG in base64, a column for each picture.
        rows: what stands in its rows, from the top.
    """

    strip: str
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation.

    Attributes:
        run: name of the run, of the pipeline, or of the file or folder of samples.
        label: the row's name on a leaderboard.
        nfe: network evaluations per sample, counted; None for samples of another tool.
        n: samples.
        reference, extractor: what they were compared with, and in which features.
        rounding: rule by which samples became uint8; UNKNOWN for samples of another tool.
        labels: rule by which labels were asked for; UNKNOWN likewise.
        metrics: the numbers, in the order of their columns.
        samples: what was given.
        sampler: spec of solver, steps, grid, guide, cache, engine and dtype, defaults filled in; {} for other tools'.
        brief: the same without the options that have their default, as pages say it; {} for `sampler`.
        checkpoint: step, role, sha256 and weights of what was loaded.
        seed: of the samples.
        floor: the real images that the measurements' floors are of.
        speed, cache: as measured; None if not measured.
        params: of the network.
        device: processor, in words.
        versions: of packages.
        date: ISO 8601.
        command: that repeats the evaluation.
        strip: the first ten samples, a PNG in base64.
        protocol: name of the published protocol that was followed; None for none.
        per_class: numbers of each class.
        neighbours: samples beside their nearest training images.
        captions: that the samples were drawn of; None for a model that takes none, and for samples of another tool.
        restored: samples beside the pictures that they should be; None where those are not known.
        schema: of this dataclass.
    """

    run: str
    label: str
    nfe: float | None
    n: int
    reference: ReferenceInfo
    extractor: ExtractorInfo
    rounding: str
    labels: str
    metrics: tuple[Measurement, ...]
    samples: SamplesInfo | None = None
    sampler: Json = field(default_factory=dict)
    brief: Json = field(default_factory=dict)
    checkpoint: Json | None = None
    seed: int | None = None
    floor: FloorInfo | None = None
    speed: Speed | None = None
    cache: CacheSaving | None = None
    params: int | None = None
    device: str | None = None
    versions: Json = field(default_factory=dict)
    date: str | None = None
    command: str | None = None
    strip: str | None = None
    protocol: str | None = None
    per_class: tuple[PerClass, ...] = ()
    neighbours: Neighbours | None = None
    captions: CaptionsInfo | None = None
    restored: Restored | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        keys = [m.column.key for m in self.metrics]
        if not keys or len(set(keys)) < len(keys):
            raise UserError(f"a record holds at least one measurement, and each once; this one has {keys}")
        check_finite(self)
        pictures = (self.strip, self.floor and self.floor.strip, self.cache and self.cache.map and self.cache.map.png)
        for png in (*pictures, self.neighbours and self.neighbours.strip, self.restored and self.restored.strip):
            if png and not _is_png(png):
                raise UserError("a picture of the record is no PNG in base64")

    @property
    def comparability(self) -> str:
        """The hash that the rows of one table share: reference, extractor, number of samples.

        The reference is known by its fingerprint, which covers content and options, and not by where it lies. Rounding
        and labels, which nobody knows of another tool's samples, are shown beside a row instead.
        """
        shared = ("schema", "extractor", "n")
        reference = {key: value for key, value in vars(self.reference).items() if key != "data"}
        return digest({"reference": reference, **{key: spec_of(self, named=False)[key] for key in shared}})[:16]

    @property
    def identity(self) -> str:
        """The hash of what the samples were: repeating an evaluation gives the same one."""
        kept = ("run", "label", "checkpoint", "sampler", "seed")
        samples = self.samples.fingerprint if self.samples else ""
        shared = {"comparability": self.comparability, "samples": samples}
        shared |= {"captions": self.captions.fingerprint} if self.captions else {}
        return digest({key: getattr(self, key) for key in kept} | shared)[:16]

    def measured(self, key: str) -> Measurement:
        """Return a measurement by the key of its column; UserError lists what there is."""
        keys = {m.column.key: m for m in self.metrics}
        if key not in keys:
            raise UserError(f"{self.label}: no metric {key!r} was measured. {nearest(key, keys)}")
        return keys[key]

    def estimate(self, key: str) -> Estimate:
        """Return a measured number by the key of its column."""
        return self.measured(key).estimate


def check_finite(record: object, path: str = "") -> None:
    """Raise UserError with the path of the first number of a dataclass that is not finite."""
    if dataclasses.is_dataclass(record):
        for f in dataclasses.fields(record):
            check_finite(getattr(record, f.name), f"{path}.{f.name}".lstrip("."))
    elif isinstance(record, tuple):
        for i, value in enumerate(record):
            check_finite(value, f"{path}[{i}]")
    elif isinstance(record, float) and not math.isfinite(record):
        raise UserError(f"{path} is {record}, expected a finite number")


def to_json(record: object) -> Json:
    """Return a record as JSON values, with the sha256 of the others among them.

    Args:
        record: a dataclass, such as Record.
    """
    body = json.loads(json.dumps(spec_of(record, named=False), allow_nan=False))
    return sealed(body)


def from_json(value: object, kind: type[T], source: str) -> T:
    """Check a record that `to_json` made, and return it.

    Args:
        value: JSON value.
        kind: its dataclass, whose field `schema` has the one default that is read.
        source: its name in messages, such as a path.

    Raises:
        UserError: in one line that names the source, if it is no such record or was altered.
    """
    schema = next(f.default for f in dataclasses.fields(kind) if f.name == "schema")  # type: ignore[arg-type]
    check_format(value, cast(int, schema), source, key="schema")
    if not isinstance(value, Mapping) or not is_sealed(value):
        raise UserError(f"{source} does not match its own sha256: it was edited, or is damaged")
    return read_as({k: v for k, v in value.items() if k != "sha256"}, kind, source)


def read_as(value: object, kind: type[T], source: str) -> T:
    """Return a JSON value as a dataclass.

    Args:
        value: JSON value.
        kind: the dataclass.
        source: its name in messages, such as a path.
    """
    try:
        return convert(value, kind, kind.__name__)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def write_record(record: Record, folder: Path) -> Path:
    """Write a record to a folder, in place of that of the same samples and metrics.

    Args:
        record: what to write.
        folder: such as RUN/eval.

    Returns:
        The file's path.
    """
    metrics = digest([m.metric for m in record.metrics])[:8]
    path = folder / f"{record.identity}-{metrics}.json"
    write_text(path, json.dumps(to_json(record), indent=1) + "\n")
    return path


def record_folder(samples: Path) -> Path:
    """Return the folder that the records of samples are written to by default: RUN/eval, and SAMPLES.eval of others.

    Args:
        samples: folder of a run or of a checkpoint, or a folder or a file of pictures.
    """
    is_run = any((samples / mark).exists() for mark in RUN_MARKS)
    whole = Path(os.path.abspath(samples))  # noqa: PTH100 - "." has a name then, and no link is followed
    return samples / "eval" if is_run else whole.parent / f"{whole.name}.eval"


def _is_png(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(b"\x89PNG\r\n\x1a\n")
    except ValueError:
        return False
