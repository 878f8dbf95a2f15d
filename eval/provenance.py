"""The origin of a record: sampler, checkpoint, machine, versions, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import gen
from gen.config.errors import UserError
from gen.config.reading import file_sha256
from gen.config.spec import Json, anchored, name_of, spec_of
from gen.config.trust import external_names
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members
from gen.pipeline import Pipeline

if TYPE_CHECKING:
    from gen.eval.reference import Reference

OPTIONS = ("training", "paired", "measured", "prompts", "class_wise", "protocol", "allow_lossy", "reference_extractor")

__all__ = [
    "brief_spec",
    "checkpoint",
    "command",
    "device_of",
    "loading_options",
    "machine",
    "sampler_spec",
    "setting",
    "short",
]


def sampler_spec(pipeline: Pipeline, how: Mapping[str, object]) -> Json:
    """Return the sampler that a pipeline uses, defaults filled in, as a spec.

    Of a searched grid it also holds the times, of a searched cache the sha256 of its file: a file's name does not say
    what was in it.

    Args:
        pipeline: Pipeline, or anything with `plan`.
        how: keywords of its `sample`.
    """
    plan = pipeline.plan(**how)
    spec = spec_of(plan, named=False)
    if spec["grid"]["name"] == "searched":
        spec["grid"]["times"] = plan.grid.read()["times"]
    if spec["cache"] is not None and spec["cache"]["name"] == "searched":
        spec["cache"]["sha256"] = file_sha256(Path(plan.cache.file))
    if dtype := _dtype(pipeline):
        spec["dtype"] = dtype
    engine = getattr(pipeline, "engine", None)
    if engine is None:
        return spec
    about = members(pipeline.denoiser.net).about if isinstance(pipeline.denoiser, Denoiser) else ""
    return {**spec, "engine": {**spec_of(engine), **({"about": about} if about else {})}}


def brief_spec(pipeline: Pipeline, how: Mapping[str, object]) -> Json:
    """Return the spec of `sampler_spec` without the options that have their default, as a page says it.

    Of a guide and a cache the first option, its strength, is always there.

    Args:
        pipeline: Pipeline, or anything with `plan`.
        how: keywords of its `sample`.
    """
    plan = pipeline.plan(**how)
    parts = {key: getattr(plan, key) for key in ("solver", "grid", "guide", "cache")}
    brief = {key: _brief(part, key in ("guide", "cache")) for key, part in parts.items()}
    return {**sampler_spec(pipeline, how), **brief}


def _brief(thing: Any, strength: bool = False) -> Any:
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing
    spec, kept = spec_of(thing), {"name": name_of(type(thing))}
    for i, field in enumerate(f for f in dataclasses.fields(thing) if f.name in spec):
        value, missing = getattr(thing, field.name), dataclasses.MISSING
        usual = field.default if field.default_factory is missing else field.default_factory()
        if value != usual or (strength and i == 0):
            kept[field.name] = _brief(value) if dataclasses.is_dataclass(value) else spec[field.name]
    return kept


def checkpoint(pipeline: object) -> Json | None:
    """Return step, role, sha256, weights and added adapters of the checkpoint that a pipeline was loaded from, or None.

    Args:
        pipeline: Pipeline, TextPipeline, or anything.
    """
    info = getattr(pipeline, "info", None)
    if info is None:
        return None
    weights = {"weights": getattr(pipeline, "weights", "raw")}
    return {key: info[key] for key in ("step", "role", "sha256", "adapters") if key in info} | weights


def command(
    pipeline: Pipeline | None, reference: Reference, given: Mapping[str, Any], n: int, autoencoder: object = None
) -> str:
    """Return the command line that repeats an evaluation, from any working directory.

    For a pipeline that lies in no folder, and for a tensor, it is the Python call.

    Args:
        pipeline: that drew the samples; None for samples that were there.
        reference: that they were compared with.
        given: arguments of gen.evaluate.
        n: number of samples.
        autoencoder: spec of the one that decoded them.
    """
    samples = given["samples"]
    folder = samples if isinstance(samples, (str, Path)) else None if pipeline is None else pipeline.folder
    words = {key: given[key] for key in ("solver", "steps", "grid", "guide", "cache")}
    words |= {"n": n, "seed": given["seed"], "label": given["label"], "autoencoder": autoencoder}
    words |= {"against": reference.word, "split": reference.split if reference.has_splits else None}
    words |= {"extractor": reference.extractor_spec}
    if tensors := [key for key in OPTIONS if isinstance(given[key], Tensor)]:
        raise UserError(f"{tensors[0]} is a tensor, which no command line can name")
    words |= {"each": given["each"] if given["each"] > 1 else None}
    words |= {key: given[key] or reference.options.get(key) for key in OPTIONS}
    words = {k: v if k == "label" else _placed(v) for k, v in words.items() if v is not None}  # a label is no path
    specs = None if given["metrics"] is None else [short(metric) for metric in given["metrics"]]
    if folder is None:
        words |= {} if specs is None else {"metrics": specs}
        name = "samples" if pipeline is None else "pipeline"
        return f"gen.evaluate({name}, {', '.join(f'{key}={value!r}' for key, value in words.items())})"
    if specs is not None:
        plain = all(isinstance(spec, str) for spec in specs)
        words["metrics"] = ",".join(map(str, specs)) if plain else json.dumps(specs)
    line = ["gen", "evaluate", str(Path(folder).absolute())]
    for key, value in (words | ({} if pipeline is None else loading_options(pipeline))).items():
        for one in value if isinstance(value, list) else [value]:
            option, text = f"--{key.replace('_', '-')}", json.dumps(one) if isinstance(one, dict) else str(one)
            line += [option] if one is True else [f"{option}={text}"] if text.startswith("-") else [option, text]
    return shlex.join(line)


def _placed(value: object) -> object:
    """Return an option as it is written on a command line; a path as what it is from any working directory."""
    if isinstance(value, (str, Path)) and Path(value).exists():
        return str(Path(value).absolute())
    return value if isinstance(value, (bool, Path)) else short(value)


def loading_options(pipeline: Pipeline) -> Json:
    """Return how a pipeline was loaded, where gen.load by itself does not do so.

    Other weights, adapters, an engine, a dtype, a device, and the packages that it was allowed to follow, a list.

    Args:
        pipeline: that gen.load returned.
    """
    averages = pipeline.info["run"]["ema"] if pipeline.info else ()
    usual = averages[0]["label"] if averages else "raw"
    weights = {} if pipeline.weights == usual else {"weights": pipeline.weights}
    engine = {"engine": json.dumps(spec_of(pipeline.engine))} if getattr(pipeline, "engine", None) is not None else {}
    packages = sorted({name.partition(":")[0].partition(".")[0] for name in external_names(pipeline.info)})
    device = {} if str(pipeline.device) == "cpu" else {"device": str(pipeline.device)}
    dtype = {"dtype": short} if (short := _dtype(pipeline)) else {}
    encoder = getattr(getattr(pipeline, "encode_prompts", None), "encoder", None)
    reads = {} if encoder is None else {"text_encoder": json.dumps(anchored(spec_of(encoder)))}
    own = None if getattr(pipeline, "decoder", None) is None else pipeline.decoder.identity().get("call")
    reads |= {"call": json.dumps(own)} if own else {}
    added = (pipeline.info or {}).get("adapters", {})
    runs = [f"{Path(run['folder']).absolute()}={run['factor']!r}" for run in added.get("runs", ())]
    reads |= ({"adapters": runs} if runs else {}) | ({} if added.get("ties") is None else {"ties": added["ties"]})
    return weights | engine | dtype | device | reads | ({"allow": packages} if packages else {})


def _dtype(pipeline: object) -> str:
    """Return the dtype that a pipeline was loaded in, "" for float32."""
    denoiser, own = getattr(pipeline, "denoiser", None), getattr(pipeline, "decoder", None) is None
    dtype = getattr(denoiser if own else getattr(denoiser, "net", None), "dtype", None)  # another's network casts x
    usual = not isinstance(dtype, torch.dtype) or (dtype == torch.float32 and not own)
    return "" if usual else str(dtype).removeprefix("torch.")


def machine(device: torch.device) -> str:
    """Return a device's name, and on a CPU the number of threads.

    Args:
        device: of PyTorch.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def device_of(pipeline: object) -> torch.device:
    """Return the device of a pipeline; the CPU for one that does not say.

    Args:
        pipeline: anything.
    """
    return torch.device(getattr(pipeline, "device", "cpu"))


def setting(pipeline: Pipeline | None) -> Json:
    """Return parameters, machine, versions and date, by the names of a record.

    Args:
        pipeline: that was evaluated; None for samples of another tool, whose machine nobody knows.
    """
    versions = {"gen": gen.__version__, "torch": torch.__version__}
    return {
        "params": None if pipeline is None else pipeline.params,
        "device": None if pipeline is None else machine(device_of(pipeline)),
        "versions": versions | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def short(value: object) -> str | int | dict[str, object]:
    """Return a name, a number, or the spec of a thing without defaults; its name alone if there is no more to say.

    A list is a grid's times.

    Args:
        value: an option as it was given.
    """
    if isinstance(value, (list, tuple, Tensor)):
        return {"name": "given", "values": torch.as_tensor(value).tolist()}
    if isinstance(value, (str, int)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        usual = {f.name for f in dataclasses.fields(value) if f.init and getattr(value, f.name) == f.default}
        spec = {key: part for key, part in spec_of(value).items() if key not in usual}
    else:
        spec = dict(value) if isinstance(value, Mapping) else {"name": name_of(type(value))}
    return spec["name"] if set(spec) == {"name"} else anchored(spec)
