"""The inputs of an evaluation, opened and checked before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.reading import read_lines
from gen.config.spec import Json
from gen.config.trust import allowing, check_trusted, external_names, names_from
from gen.data.lib.learned import learned_data
from gen.eval.captions import captions_of
from gen.eval.drawn import Decoder, DrawnImages
from gen.eval.extraction import Extraction, Rows
from gen.eval.image_sets import Images, TensorImages, chosen, chosen_rows, is_run, open_images
from gen.eval.metrics import NEEDS, Metric
from gen.eval.provenance import sampler_spec
from gen.eval.record import SamplesInfo
from gen.eval.reference import Reference
from gen.pipeline import Pipeline, load_images
from gen.samples import Samples
from gen.training.held_out_pairs import held_out_pairs

__all__ = [
    "SAMPLER",
    "asked",
    "check_paths",
    "check_shape",
    "drawer",
    "give",
    "measurements_of",
    "opened",
    "own_data",
    "recordable",
    "reference_of",
]

DRAWN = 1000  # samples that are drawn if nobody says how many
SAMPLER = ("solver", "steps", "grid", "guide", "cache", "autoencoder")  # options of samples that are drawn here


def asked(given: Mapping[str, Any], sampler: Decoder | None) -> set[str]:
    """Return the needs of metrics that options ask for, and samples that restore.

    Args:
        given: arguments of gen.evaluate, here and below.
        sampler: that draws the samples; None for samples that are there.
    """
    wanted = {"labelled_features": given["class_wise"], "posterior": given["each"] > 1}
    restored = sampler is not None and sampler.pairs is not None
    wanted |= {"pairs": restored or given["paired"] is not None, "text": given["prompts"] is not None}
    opened_with = against.options if isinstance(against := given["against"], Reference) else {}
    trained = given["training"] is not None or "training" in opened_with
    wanted |= dict.fromkeys(("train_features", "split_features"), trained)
    return {needs for needs, is_wanted in wanted.items() if is_wanted}


def check_paths(given: Mapping[str, Any]) -> None:
    """Refuse, before anything is read, paths that are not there, and files in place of folders.

    Args:
        given: arguments of gen.evaluate.
    """
    for key in ("samples", "paired", "measured", "prompts"):
        path = given[key]
        if isinstance(path, (str, Path)) and not Path(path).exists():
            allowed = "a text file" if key == "prompts" else "a run, or a folder or a file of pictures"
            raise UserError(f"{path} does not exist: give {allowed}")
    for key in ("out", "features"):
        path = given[key]
        if path is not None and Path(path).exists() and not Path(path).is_dir():
            raise UserError(f"{key}: {path} is a file, a folder is needed")


def drawer(given: Mapping[str, Any]) -> Decoder | None:
    """Return what draws the samples; None for samples that are there.

    Args:
        given: arguments of gen.evaluate.
    """
    samples, allow = given["samples"], given["allow"]
    if isinstance(samples, (str, Path)):
        if not is_run(Path(samples)):
            if options := [key for key in SAMPLER if given[key] is not None]:
                raise UserError(f"{samples} is no run, its samples are there: leave out {', '.join(options)}")
            return None
        samples = load_images(samples, allow=allow)
    elif isinstance(samples, (Tensor, Images, Samples)):
        return None
    samples = getattr(samples, "pipeline", samples)  # of what draws samples by prompts
    if isinstance(samples, type) or not hasattr(samples, "sample"):
        allowed = "a Pipeline, the folder of a run, a folder or a file of pictures, or a uint8 tensor"
        raise UserError(f"evaluate: samples: got {shown(samples)}, expected {allowed}")
    captions = captions_of(samples, given["prompts"], given["seed"], lambda: own_data(samples, allow))
    pairs = held_out_pairs(samples, lambda: own_data(samples, allow), given["each"], given["seed"])
    return Decoder(samples, given["autoencoder"], captions, pairs)


def opened(
    given: Mapping[str, Any], sampler: Decoder | None, how: Json, metrics: Sequence[Metric]
) -> tuple[Images, SamplesInfo]:
    """Return the samples as a set of pictures, and as records have them.

    Args:
        given: arguments of gen.evaluate.
        sampler: that draws them; None for samples that are there.
        how: keywords of its `sample`.
        metrics: that are wanted.
    """
    n, seed, each = given["n"], given["seed"], given["each"]
    if each > 1 and given["paired"] is None and (sampler is None or sampler.pairs is None):
        raise UserError(f"each = {each}: it is of models that restore degraded pictures, and of paired ones")
    if n is not None and n % each:
        raise UserError(f"n = {n} and each = {each}: n must be a multiple")
    if sampler is not None:
        known = given["features"] is not None
        listed = 0 if sampler.captions is None or given["prompts"] is None else len(sampler.captions)
        if sampler.pairs is not None:
            listed = min(DRAWN // each * each or each, len(sampler.pairs))
            sampler.pairs.check(n or listed)
        extras = {one for metric in metrics for one in NEEDS[metric.needs]} & {"targets", "measured"}
        extras -= {name for name, key in (("targets", "paired"), ("measured", "measured")) if given[key] is not None}
        if sampler.pairs is not None and "targets" in extras:
            extras.add("measured")  # to be seen beside them
        images: Images = DrawnImages(
            sampler, how, n or listed or DRAWN, seed, given["batch_size"], sorted(extras), known
        )
        kind, own = "run" if sampler.pipeline.folder is not None else "pipeline", sampler.pairs
        return images, SamplesInfo(kind, fingerprint="" if own is None else own.fingerprint)
    whole = given["samples"]
    whole = TensorImages(whole.uint8(), whole.cond.get("y"), "samples") if isinstance(whole, Samples) else whole
    if given["against"] is None:
        raise UserError("evaluate: samples of another tool: say against what, --against REFERENCE (against=...)")
    whole = whole if isinstance(whole, Images) else open_images(whole, given["allow_lossy"], given["quiet"])
    if n is not None and n > len(whole) and given["protocol"] is not None:
        raise UserError(f"{whole.name} holds {len(whole)} pictures, --protocol {given['protocol']} takes {n:,}")
    images = chosen(whole, n, seed)
    available = None if len(images) == len(whole) else len(whole)
    return images, SamplesInfo(whole.kind, whole.format, available, images.fingerprint)


def reference_of(given: Mapping[str, Any], sampler: Decoder | None, extraction: Extraction) -> Reference:
    """Return what samples are compared with.

    Args:
        given: arguments of gen.evaluate.
        sampler: that draws the samples; None for samples that are there.
        extraction: how features are computed.
    """
    against = given["against"]
    if isinstance(against, Reference):
        if own := [key for key in ("extractor", "training", "reference_extractor") if given[key] is not None]:
            raise UserError(f"evaluate: the Reference was opened with these already: leave out {', '.join(own)}")
        return against
    against = own_data(sampler.pipeline, given["allow"]) if against is None and sampler is not None else against
    if isinstance(against, Mapping) and against.get("name") == "degraded":
        against = against["data"]  # the pictures as they were
    if isinstance(against, Pipeline) or (isinstance(against, (str, Path)) and is_run(Path(against))):
        pipeline = against if isinstance(against, Pipeline) else load_images(against, allow=given["allow"])
        n, seed = given["n"] or DRAWN, given["seed"] + 1  # of other noise than the samples
        prompts = given["prompts"] if sampler is not None and sampler.captions is not None else None
        captions = captions_of(pipeline, prompts, seed, lambda: own_data(pipeline, given["allow"]))
        against = DrawnImages(Decoder(pipeline, None, captions), {}, n, seed, given["batch_size"])
    return Reference.open(
        against, given["split"], given["extractor"], extraction,
        training=given["training"], computed_by=given["reference_extractor"],
    )  # fmt: skip


def give(
    rows: Rows, given: Mapping[str, Any], extraction: Extraction, available: int, sampler: Decoder | None = None
) -> None:
    """Add the rows that do not come from the samples: what they should be and are restored from, and prompts.

    Args:
        rows: of the samples.
        given: arguments of gen.evaluate.
        extraction: how they are computed.
        available: samples of which the rows were chosen: there is one picture and one prompt for each.
        sampler: that draws the samples; None for samples that are there.
    """
    n, seed, each = len(rows), given["seed"], given["each"]
    if each > 1 and n != available:
        raise UserError(f"n = {n} of {available} samples, {each} of each picture: take all")
    if given["paired"] is not None:
        whole = open_images(given["paired"])
        if len(whole) * each != available:
            of_each = "one for each" if each == 1 else f"one for {each}"
            raise UserError(f"paired: {whole.name} holds {len(whole)} pictures for {available} samples: {of_each}")
        truth = Rows(chosen(whole, n // each, seed), rows.extractor, rows.spec, extraction)
        if truth.images.shape != rows.images.shape:
            raise UserError(f"paired: {whole.name} holds {list(whole.shape)}, the samples {list(rows.images.shape)}")
        truth.fill(("images",))
        targets = truth.rows("images")
        assert targets is not None
        rows.given["targets"] = targets.repeat_interleave(each, 0)
    rows.given["inputs"] = torch.arange(n) // each
    if given["measured"] is not None:
        y = measurements_of(given["measured"])
        if len(y) * each != available:
            raise UserError(f"measured: {len(y)} measurements for {available} samples, {each} of each")
        rows.given["measured"] = y[chosen_rows(len(y), n // each, seed)].repeat_interleave(each, 0)
    texts = list[str]()
    if sampler is not None and sampler.captions is not None:
        texts = sampler.captions.rows(0, n) if hasattr(rows.extractor, "text") else []
    elif given["prompts"] is not None:
        if not hasattr(rows.extractor, "text"):
            raise UserError(f"prompts: the extractor {rows.extractor.name} reads no text; clip does")
        lines = list(read_lines(Path(given["prompts"])))
        if len(lines) != available:
            raise UserError(f"{given['prompts']} has {len(lines)} lines for {available} samples: one for each")
        texts = [lines[i] for i in chosen_rows(len(lines), n, seed).tolist()]
    if texts:
        parts = [cast(Any, rows.extractor).text(texts[i : i + 250]) for i in range(0, n, 250)]
        rows.given["prompts"] = torch.cat(parts)


def measurements_of(given: object) -> Tensor:
    """Return measurements, floats [M, ...]: of a tensor or an .npy file as they are, of pictures in [-1, 1].

    Args:
        given: a tensor, or the path of a file or of pictures.
    """
    if isinstance(given, Tensor) and given.is_floating_point():
        return given.float()
    if isinstance(given, (str, Path)) and Path(given).suffix == ".npy":
        found = torch.from_numpy(np.load(given, allow_pickle=False))
        if found.is_floating_point():
            return found.float()
    whole = open_images(given)
    return whole.read(range(len(whole)))["images"].float() / 127.5 - 1


def recordable(sampler: Decoder, how: Mapping[str, Any]) -> Json:
    """Return the sampler's spec; UserError, before the work, if no record could hold it.

    Args:
        sampler: that draws the samples.
        how: keywords of its `sample`.
    """
    try:
        spec = sampler_spec(sampler.pipeline, how)
        spec |= {} if sampler.spec is None else {"autoencoder": sampler.spec}
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"evaluate: the sampler {shown(how)} has no spec to record: {error}") from error
    return spec


def own_data(pipeline: Pipeline, allow: Sequence[str] = ()) -> object:
    """Return the spec of the real data that a pipeline's model learned; "digits" where there is none.

    Args:
        pipeline: that draws the samples.
        allow: packages whose names in its teacher's folder are followed.
    """
    info = getattr(pipeline, "info", None) or {}
    data = learned_data(info)
    if data.get("name") == "pairs":
        raise UserError(f"{pipeline.name} learned pairs of a teacher that is not there: give the real data")
    if data and data != info["run"]["data"]:  # names of the run itself were checked when it was loaded
        with names_from(f"the teacher of {pipeline.name}"), allowing(allow):
            for name in external_names(data):
                check_trusted(name)
    return data or "digits"


def check_shape(name: str, shape: Sequence[int], reference: Reference) -> None:
    """Refuse samples that are no pictures like those of the reference.

    Args:
        name: of the samples.
        shape: of one.
        reference: what they are compared with.
    """
    real = reference.info.shape
    if real is not None and tuple(shape) != tuple(real):
        here = reference.data["name"]
        raise UserError(f"{name} has images {list(shape)}, {here} holds {list(real)}: not comparable")
