"""One evaluation: samples of a pipeline against real images, as a record that anyone can check and repeat."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import platform
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import gen
from gen.config.checkpoints import write_json
from gen.config.errors import UserError
from gen.config.images import to_pil
from gen.config.spec import spec_of
from gen.eval.estimate import Estimate
from gen.eval.features.pixels import Pixels
from gen.eval.metrics.accuracy import Accuracy
from gen.eval.metrics.coverage import Coverage
from gen.eval.metrics.frechet import Frechet
from gen.eval.metrics.kid import KID
from gen.eval.metrics.nearest import Nearest
from gen.eval.metrics.recall import Recall
from gen.eval.record import SCHEMA, comparability, identity
from gen.eval.reference import Reference
from gen.eval.saving import Saving
from gen.eval.throughput import InterleavedTiming, Throughput
from gen.pipeline import load_images

if TYPE_CHECKING:
    from gen.eval.meter import Meter

__all__ = ["evaluate", "strip"]

ROUNDING = "uint8, clamped, half to even"
STRIP = 10  # samples shown in a row of the leaderboard
TALLEST = 64  # pixels, of a picture in that row


def evaluate(
    pipeline: Any,
    *,
    data: Any = "digits",
    split: str = "test",
    n: int = 1000,
    solver: Any = None,
    steps: int | None = None,
    grid: Any = None,
    guide: Any = None,
    cache: Any = None,
    seed: int = 0,
    extractor: Any = "digits_cnn",
    label: str | None = None,
    out: str | Path | None = None,
    batch_size: int = 250,
    seconds: float = 2.0,
    timed: int = 100,
) -> dict[str, Any]:
    """Quality, with its uncertainty, and speed of n samples of a pipeline, or of the model in a run folder.

    data: name, spec or object of a data set, or a Reference already opened with its split and extractor, to share it
    between evaluations. solver, steps, grid, guide, cache: as Pipeline.sample takes them. label: what the leaderboard
    calls the row. seconds: spent on timing, in batches of at most `timed`. Only the memory depends on batch_size.

    Returns the record, of JSON values only; its "cache", if there is one, is that of gen.eval.saving.Saving. Given a
    run folder it is also written to eval/<hash>.json there, and with `out`, a folder, to that one. Raises UserError if
    what the samples are compared with does not fit them.
    """
    folder = Path(pipeline) if isinstance(pipeline, (str, Path)) else None
    if folder is not None:
        pipeline = load_images(folder)
    if n < STRIP:
        raise UserError(f"evaluate: n = {n}; it must be at least {STRIP}, and 1000 to mean something")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"evaluate: batch_size = {batch_size!r}; it must be a whole number, at least 1")
    reference = data if isinstance(data, Reference) else Reference.open(data, split, extractor)
    check_shape(pipeline, reference)
    how = {"solver": solver, "steps": steps, "grid": grid, "guide": guide, "cache": cache}
    how = {key: value for key, value in how.items() if value is not None}
    features, pixels, nfe = generate(pipeline, reference, how, n, seed, batch_size)
    metrics, floor = score(features, pixels, reference)
    record = {
        "schema": SCHEMA,
        "run": pipeline.name,
        "label": label or pipeline.name,
        "checkpoint": checkpoint(pipeline),
        "sampler": sampler_spec(pipeline, how),
        "nfe": nfe,
        "n": n,
        "seed": seed,
        **protocol(reference, pipeline.classes),
        "metrics": metrics,
        "floor": floor | {"n": len(reference.other.images), "strip": strip(one_of_each(reference))},
        **timing(pipeline, how, min(timed, n), seed, seconds),
        **setting(pipeline),
        "command": command(pipeline, folder or pipeline.folder, how, reference, n, seed, label),
        "strip": strip(pixels.rows()[:STRIP].mul(255).round().to(torch.uint8).reshape(-1, *pipeline.shape)),
    }
    return finish(record, Path(out) if out is not None else folder / "eval" if folder is not None else None)


def check_shape(pipeline: Any, reference: Reference) -> None:
    made, held = list(pipeline.shape), list(reference.real.images.shape[1:])
    if made != held:
        raise UserError(f"{pipeline.name} makes images {made}, {reference.data['name']} holds {held}: not comparable")


def generate(
    pipeline: Any, reference: Reference, how: Mapping[str, Any], n: int, seed: int, batch_size: int
) -> tuple[Meter, Meter, float]:
    """Meters filled with n samples, of features and of pixels, and the network evaluations per sample."""
    from gen.eval.meter import Meter

    labels: list[Tensor] = []
    real = reference.real.features
    features = Meter(reference.extractor, {"fid": partial(Frechet(), reference=real)})
    features.statistics["kid"] = partial(KID(), reference=real)
    features.statistics["recall"] = partial(Recall(), reference=real)
    features.statistics["coverage"] = partial(Coverage(), reference=real)
    pixels = Meter(Pixels(), {"nearest": partial(Nearest(), reference=Pixels()(reference.train.images))})
    evaluations = 0.0
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        samples = pipeline.sample(size, **how, seed=seed, batch_size=size, start=start)
        index, images = torch.arange(start, start + size), samples.uint8()
        features.update(index, images)
        pixels.update(index, images)
        evaluations += samples.nfe * size
        labels += [samples.cond["y"].cpu()] if "y" in samples.cond else []
    if reference.real is not reference.train:
        features.statistics["fid_train"] = partial(Frechet(), reference=reference.train.features)
    head = getattr(reference.extractor, "head", None)
    if labels and head is not None:
        asked = torch.cat(labels)
        features.statistics["accuracy"] = lambda rows: Accuracy()(head(rows), asked)
    return features, pixels, evaluations / n


def timing(pipeline: Any, how: Mapping[str, Any], batch: int, seed: int, seconds: float) -> dict[str, Any]:
    """The speed and, if there is a cache, what it saves."""
    timer = Throughput(batch=batch, seconds=seconds)
    speed = timer.measure(lambda b: pipeline.sample(b, **how, seed=seed, batch_size=b), device_of(pipeline))
    if pipeline.plan(**how).cache is None:
        return {"speed": speed.record()}
    saving = Saving(batch, InterleavedTiming(seconds=seconds))
    return {"speed": speed.record(), "cache": saving.measure(pipeline, how, seed)}


def finish(record: dict[str, Any], target: Path | None) -> dict[str, Any]:
    """The record with its comparability key, as strict JSON values, written to the folder `target`."""
    record["comparability"] = comparability(record)
    strict: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
    if target is not None:
        write_json(target / f"{identity(strict)}.json", strict)
    return strict


def score(features: Meter, pixels: Meter, reference: Reference) -> tuple[dict[str, Any], dict[str, Any]]:
    """The samples' metrics, and those of real images, as JSON."""
    found = features.compute() | pixels.compute()
    metrics = {name: plain(estimate) for name, estimate in found.items()}
    floor = {name: plain(estimate) for name, estimate in reference.floor().items()}
    metrics["nearest"]["floor"] = floor["nearest"]["value"]
    return metrics, floor


def plain(estimate: Estimate) -> dict[str, float]:
    if not math.isfinite(estimate.value) or not math.isfinite(estimate.se):
        raise UserError(f"a metric of {estimate.n} samples is not finite: {estimate}")
    return {"value": estimate.value, "se": estimate.se}


def protocol(reference: Reference, classes: int) -> dict[str, Any]:
    """What two records must share to be compared, beside n."""
    extractor = reference.extractor
    return {
        "reference": {
            "data": reference.data,
            "split": reference.split,
            "n": len(reference.real.images),
            "shape": list(reference.real.images.shape[1:]),
            "fingerprint": reference.real.fingerprint,
            "other": reference.other.fingerprint,
        },
        "extractor": {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "dim": reference.real.features.shape[1],
        },
        "rounding": ROUNDING,
        "labels": f"balanced, i mod {classes}" if classes else "none",
    }


def strip(images: Tensor) -> str:
    """uint8 images [N, C, H, W] side by side with clear gaps, as a PNG in base64; large ones are drawn smaller."""
    from PIL import Image

    n, c, h, w = images.shape
    high = min(h * max(1, 32 // h), TALLEST)
    wide, gap = max(1, w * high // h), max(1, high // 8)
    sheet = Image.new("LA" if c == 1 else "RGBA", (n * (wide + gap) - gap, high))
    for i, image in enumerate(images):
        picture = to_pil(image).resize((wide, high), Image.Resampling.BOX if h > high else Image.Resampling.NEAREST)
        sheet.paste(picture.convert(sheet.mode), (i * (wide + gap), 0))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def one_of_each(reference: Reference) -> Tensor:
    """Ten real images: the first of each label in turn, as the samples' labels go; without labels the first ten."""
    images, labels = reference.real.images, reference.real.labels
    if labels is None:
        return images[:STRIP]
    classes = torch.unique(labels).tolist()
    rows = [int((labels == classes[i % len(classes)]).nonzero()[i // len(classes)]) for i in range(STRIP)]
    return images[rows]


def sampler_spec(pipeline: Any, how: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline made of the request, defaults filled in, as a spec.

    Of a searched grid it also holds the times, of a searched cache the sha256 of its file: a file's name does not say
    what was in it.
    """
    plan = pipeline.plan(**how)
    spec = spec_of(plan, named=False)
    if spec["grid"]["name"] == "searched":
        spec["grid"]["times"] = plan.grid.read()["times"]
    if spec["cache"] is not None and spec["cache"]["name"] == "searched":
        spec["cache"]["sha256"] = hashlib.sha256(Path(plan.cache.file).read_bytes()).hexdigest()
    engine = getattr(pipeline, "engine", None)
    if engine is None:
        return spec
    about = getattr(pipeline.denoiser.net, "about", "")
    return {**spec, "engine": {**spec_of(engine), **({"about": about} if about else {})}}


def checkpoint(pipeline: Any) -> dict[str, Any] | None:
    """Step and hash of the checkpoint that a loaded pipeline came from."""
    info = getattr(pipeline, "info", None)
    if info is None:
        return None
    return {key: info[key] for key in ("step", "role", "sha256") if key in info} | {"weights": pipeline.weights}


def command(
    pipeline: Any,
    folder: Path | None,
    how: Mapping[str, Any],
    reference: Reference,
    n: int,
    seed: int,
    label: str | None,
) -> str:
    """The command line that repeats an evaluation; for a pipeline that lies in no folder, the Python call."""
    options = {key: _short(value) for key, value in how.items()}
    options |= {"data": _short(reference.data), "split": reference.split, "n": n, "seed": seed}
    options |= {"extractor": reference.extractor.name} | ({"label": label} if label else {})
    if folder is None:
        return f"gen.evaluate(pipeline, {', '.join(f'{key}={value!r}' for key, value in options.items())})"
    options |= loaded(pipeline)
    words = ["gen", "evaluate", str(folder)]
    for key, value in options.items():
        words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return shlex.join(words)


def loaded(pipeline: Any) -> dict[str, str]:
    """How the pipeline was loaded, where that is not what gen.load does by itself: other weights, another device."""
    averages = pipeline.info["run"]["ema"] if pipeline.info else ()
    usual = averages[0]["label"] if averages else "raw"
    weights = {} if pipeline.weights == usual else {"weights": pipeline.weights}
    engine = {"engine": json.dumps(spec_of(pipeline.engine))} if getattr(pipeline, "engine", None) is not None else {}
    return weights | engine | ({} if str(pipeline.device) == "cpu" else {"device": str(pipeline.device)})


def machine(device: torch.device) -> str:
    """The device's name, and on a CPU the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def device_of(pipeline: Any) -> torch.device:
    return torch.device(getattr(pipeline, "device", "cpu"))


def setting(pipeline: Any) -> dict[str, Any]:
    """What was measured on, with, and when."""
    import torchmetrics

    return {
        "params": pipeline.params,
        "device": machine(device_of(pipeline)),
        "versions": {
            "gen": gen.__version__,
            "torch": torch.__version__,
            "torchmetrics": torchmetrics.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _short(value: Any) -> Any:
    """A name, a number, or the spec of a thing; its name alone if there is no more to say. A list is a grid's times."""
    if isinstance(value, (list, tuple, Tensor)):
        return {"name": "given", "values": torch.as_tensor(value).tolist()}
    if isinstance(value, (str, int)):
        return value
    spec = dict(value) if isinstance(value, Mapping) else spec_of(value)
    return spec["name"] if set(spec) == {"name"} else spec
