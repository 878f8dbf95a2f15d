"""One evaluation: samples of a run, or of any other tool, against real images, as a record that anyone can check."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from gen.config.devices import check_device
from gen.config.errors import UserError
from gen.config.fields import check_arguments
from gen.config.spec import Json
from gen.eval.drawn import Decoder
from gen.eval.extraction import Extraction, Rows
from gen.eval.features import Extractor
from gen.eval.image_sets import Images, label_counts
from gen.eval.measuring import all_measurements, choose, floor_of, neighbours, pictures, restored, spare, timing
from gen.eval.metrics import NEEDS, Metric
from gen.eval.opening import SAMPLER, asked, check_paths, check_shape, drawer, give, opened, recordable, reference_of
from gen.eval.pictures import strip
from gen.eval.protocols import EvaluationProtocol, protocol_of
from gen.eval.provenance import brief_spec, checkpoint, command, device_of, setting
from gen.eval.record import UNKNOWN, ExtractorInfo, Record, SamplesInfo, write_record
from gen.eval.reference import Reference
from gen.training.distributed import broadcast, is_main

__all__ = ["evaluate", "extract_part"]

ROUNDING = "uint8, clamped, half to even"


@check_arguments(n="[1, 10000000]", each="[1, 100000]", batch_size="[1, inf)", seconds="(0, inf)", timed="[1, inf)")
def evaluate(
    samples: Any,
    against: object = None,
    *,
    metrics: Sequence[object] | None = None,
    extractor: object = None,
    split: str | None = None,
    n: int | None = None,
    training: object = None,
    paired: object = None,
    measured: object = None,
    each: int = 1,
    prompts: str | Path | None = None,
    class_wise: bool = False,
    protocol: str | None = None,
    allow_lossy: bool = False,
    reference_extractor: str | None = None,
    features: str | Path | None = None,
    solver: object = None,
    steps: int | None = None,
    grid: object = None,
    guide: object = None,
    cache: object = None,
    autoencoder: object = None,
    seed: int = 0,
    label: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 250,
    device: str | torch.device | None = None,
    seconds: float = 2.0,
    timed: int = 100,
    quiet: bool = True,
    allow: Sequence[str] = (),
) -> Record:
    """Measure samples against real images: each number with its uncertainty, and the speed of what draws them here.

    Args:
        samples: a Pipeline or the path of a run; or samples that are there: a folder or a zip of pictures, an .npz
            (ADM), .npy or safetensors file, a tensor uint8 [N, C, H, W], or what Pipeline.sample returned.
        against: name, spec or object of a data set; pictures as `samples` are given, used whole; a file of statistics
            (ADM, pytorch-fid, clean-fid, EDM, EDM2, CMMD, gen statistics); or a Reference already opened, to share it
            between evaluations. None for what a run's model was trained on, and the digits for a pipeline without.
        metrics: names, specs or objects of metrics (see gen.eval.metrics), the one that ranks a leaderboard first; None
            for the protocol's, or the default ones whose inputs can be had.
        extractor: name, spec or object of gen.eval.features; None for digits_cnn where images are [1, 8, 8], else
            pixels.
        split: of a data set that has some, "train" or "test", the images that samples are compared with, or "all";
            None for "test". What is used whole has none.
        n: number of samples; None for 1000 that are drawn, and for all that are there. Of more, n are chosen at random
            with the seed.
        training: images that the model may have memorised, as `against`; None for the split "train", if there is one.
        paired: pictures that sample i should be, as `samples` and as many, for metrics of pairs. None for those that a
            model that restores is given degraded, the held-out part of its data.
        measured: what sample i is restored from, for its consistency: floats [N, ...] as a tensor or an .npy file, or
            pictures. None for the degraded pictures that the model is given.
        each: samples of each picture that is restored, one after another: `paired` and `measured` have one for them.
        prompts: text file with a line for each sample, for metrics of texts. Of a model that takes captions, the
            captions that its samples are drawn of, n of them by default, sample i having line i mod their number; None
            for those of the held-out part of its data, in an order of the seed.
        class_wise: whether metrics of single classes are computed.
        protocol: name of gen.eval.protocols, which sets extractor, n and metrics.
        allow_lossy: whether samples may be JPEG or lossy WebP.
        reference_extractor: name of the extractor by which statistics were computed that do not say it themselves.
        features: folder that features are kept in: an evaluation that was stopped goes on, another metric needs no
            second pass; None for a temporary one. All processes have to see it.
        solver, steps, grid, guide, cache, autoencoder: as Pipeline.sample and Pipeline.decoded take them.
        seed: sample i depends on it and on i alone; of a choice of n samples among more.
        label: the row's name on a leaderboard; the run's, file's or folder's by default.
        out: folder that the record is written to; RUN/eval for a run, else none.
        batch_size: changes nothing but speed and memory.
        device: of the extractor; None for the pipeline's, or the CPU.
        seconds: spent on timing.
        timed: samples in a timed batch, at most; no more than batch_size.
        quiet: False shows progress on the terminal.
        allow: packages whose names in the run folder are followed, see gen.load.

    Returns:
        The record; under a launcher of several processes, which share out the work, the same in all of them.

    Raises:
        UserError: if what samples are compared with does not fit them, or an input of a metric cannot be had.
    """
    given = dict(locals())
    evaluation = Evaluation.open(given)
    evaluation.fill()
    return evaluation.record(given)


def extract_part(part: tuple[int, int], **options: Any) -> None:
    """Compute the features of part k of n of an evaluation, and no more; the call without a part uses them.

    Args:
        part: (k, n), from 1.
        **options: of `evaluate`; `features` must be among them.
    """
    k, n = part
    if not 1 <= k <= n:
        raise UserError(f"part {k}/{n}: allowed are 1/{n} to {n}/{n}")
    if options.get("features") is None:
        raise UserError(f"part {k}/{n}: give features, the folder that all parts are kept in")
    usual = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    Evaluation.open({**usual, **options, "part": part}).fill()


def knows_classes(extractor: Extractor, images: Images, sampler: Decoder | None) -> bool:
    """Return whether the samples' labels can be an extractor's classes: there are as many, or it does not say."""
    labels = images.labels
    classes = sampler.pipeline.classes if sampler else 0 if labels is None else int(labels.max()) + 1
    return getattr(extractor, "classes", classes) == classes


@dataclass(eq=False)
class Evaluation:
    """Samples, what they are compared with, and the metrics of both.

    Attributes:
        samples: rows of the samples.
        reference: what they are compared with.
        metrics: that are computed.
        sampler: that draws the samples; None for those that were there.
        how: keywords of its `sample`.
        spec: of the sampler; {} without one.
        info: the samples as they were given.
        protocol: that is followed.
        target: folder of the record.
    """

    samples: Rows
    reference: Reference
    metrics: list[Metric]
    sampler: Decoder | None
    how: Json
    spec: Json
    info: SamplesInfo
    protocol: EvaluationProtocol | None
    target: Path | None

    @classmethod
    def open(cls, given: Mapping[str, Any]) -> Evaluation:
        """Open everything and refuse what does not fit; nothing is computed yet."""
        protocol = None if given["protocol"] is None else protocol_of(given["protocol"])
        given = given if protocol is None else protocol.applied(given)
        check_paths(given)
        sampler = drawer(given)
        metrics = choose(given["metrics"], asked(given, sampler))
        how = {key: given[key] for key in SAMPLER[:-1] if given[key] is not None}
        out, run = given["out"], isinstance(given["samples"], (str, Path)) and sampler is not None
        target = Path(out) if out is not None else Path(given["samples"]) / "eval" if run else None
        spec = {} if sampler is None else recordable(sampler, how)
        images, info = opened(given, sampler, how, metrics)
        device = given["device"] or ("cpu" if sampler is None else device_of(sampler.pipeline))
        if given["device"] is not None:
            check_device(device)
        root, collective = given["features"], sampler is not None and sampler.collective
        extraction = Extraction(
            None if root is None else Path(root), given["batch_size"], device, given.get("part"), collective,
            given["quiet"],
        )  # fmt: skip
        reference = reference_of(given, sampler, extraction)
        check_shape(images.name, images.shape, reference)
        rows = Rows(images, reference.extractor, reference.extractor_spec, extraction)
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
        give(rows, given, extraction, info.available or len(rows), sampler)
        strict, kept, reasons = given["metrics"] is not None, list[Metric](), []
        judged = knows_classes(reference.extractor, images, sampler)
        for metric in metrics:
            reason = reference.obstacle(metric, rows)
            reasons += [] if reason is None or reason in reasons else [reason]
            if reason is not None and (strict or (given["class_wise"] and metric.needs == "labelled_features")):
                raise UserError(f"{metric.columns[0].key} needs {metric.needs}, but {reason}")
            affordable = given["training"] is not None or not reference.costs_much(metric)
            wanted = strict or (affordable and (judged or metric.needs != "logits"))
            kept += [metric] if reason is None and wanted else []
        if not kept:
            raise UserError(f"no metric can be computed: {'; '.join(reasons)}")
        return cls(rows, reference, kept, sampler, how, spec, info, protocol, target)

    def fill(self) -> None:
        """Compute the rows that are missing; all processes of a launcher have to call."""
        own = [one.removesuffix("?") for metric in self.metrics for one in NEEDS[metric.needs] if "." not in one]
        self.samples.fill(
            ["features", *("features" if one == "logits" else one for one in own if self.samples.has(one))]
        )
        self.reference.fill(self.metrics)

    def record(self, given: Mapping[str, Any]) -> Record:
        """Compute the metrics, in the first process, and return the record in all; write it if there is a folder."""
        collective = self.sampler is not None and self.sampler.collective
        if not (is_main() or collective):
            return broadcast(cast(Record, None), collective)
        record = self._record(given)
        if self.target is not None and is_main():
            target = self.target
            spare("file", lambda: write_record(record, target))
        return broadcast(record, collective)

    @property
    def knows_truth(self) -> bool:
        """Whether pictures that samples should be were read for a metric."""
        return any("targets" in NEEDS[metric.needs] for metric in self.metrics)

    def _record(self, given: Mapping[str, Any]) -> Record:
        samples, sampler, reference = self.samples, self.sampler, self.reference
        pipeline, autoencoder = (None, None) if sampler is None else (sampler.pipeline, sampler.spec)
        reference.check_width(samples.features.shape[1])
        measured, per_class = all_measurements(self.metrics, samples, reference)
        first, n, seed = pictures(samples), len(samples), given["seed"]
        found: Json = {"rounding": UNKNOWN, "labels": UNKNOWN, "nfe": None, **setting(pipeline)}
        if sampler is not None:
            nfe, classes = samples.rows("nfe"), sampler.pipeline.classes
            captions = None if sampler.captions is None else sampler.captions.info
            labels = f"balanced, i mod {classes}" if classes else "none"
            labels = labels if captions is None else f"captions of {captions.source}, i mod {captions.n}"
            labels = labels if sampler.pairs is None else f"held-out degraded pictures, {given['each']} samples of each"
            found |= {"rounding": ROUNDING, "labels": labels, "captions": captions}
            found |= {"nfe": None if nfe is None else float(nfe.mean()), "checkpoint": checkpoint(sampler.pipeline)}
            batch = min(given["timed"], n, given["batch_size"])
            found |= timing(sampler, self.how, batch, seed, given["seconds"])
        return Record(
            run=samples.images.name,
            label=given["label"] or samples.images.name,
            n=n,
            seed=seed if sampler is not None or self.info.available is not None else None,
            samples=dataclasses.replace(self.info, counts=label_counts(samples.labels)),
            reference=reference.info,
            extractor=ExtractorInfo(reference.extractor.name, reference.extractor.sha256, samples.features.shape[1]),
            sampler=self.spec,
            brief={} if sampler is None else brief_spec(sampler.pipeline, self.how),
            metrics=measured,
            per_class=per_class,
            floor=floor_of(reference),
            neighbours=spare("neighbours", lambda: neighbours(samples, first, reference)),
            protocol=None if self.protocol is None else self.protocol.name,
            command=spare("command", lambda: command(pipeline, reference, given, n, autoencoder)),
            strip=spare("strip", lambda: strip(first)),
            restored=spare("restored", lambda: restored(samples, given["each"])) if self.knows_truth else None,
            **found,
        )
