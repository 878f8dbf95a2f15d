"""The report of a dry run: what a training would take, as text or JSON."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.settings import flatten

if TYPE_CHECKING:
    from gen.config.spec import Json
    from gen.training.dry_run import Cost
    from gen.training.papers.results import Published
    from gen.training.run import Run

__all__ = ["GPUS", "MFU", "Estimate", "data_note", "estimate_of", "gib", "print_dry_run"]

GPUS = 8
MFU = 0.4  # share of the peak that a well-tuned training uses
PEAKS = {"bf16": 989.0, "fp16": 989.0, "no": 494.0}  # TFLOP/s of an H100 without sparsity, TF32 for float32
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A dry run's result.

    Attributes:
        cost: of the run's updates.
        gpus: that share the batch; fewer than 8 where 8 cannot share it equally.
        samples: of the whole run.
        flops: of the whole run.
        peak_tflops: of one GPU, which is assumed.
        hours: of all GPUs together, at MFU of that peak.
        samples_per_second: of all GPUs together, at the same.
    """

    cost: Cost
    gpus: int
    samples: int
    flops: float
    peak_tflops: float
    hours: float
    samples_per_second: float


def estimate_of(run: Run) -> Estimate:
    """Count what a run takes on up to 8 GPUs.

    Args:
        run: what would be trained.
    """
    from gen.training.dry_run import cost_of

    gpus = next(n for n in (GPUS, 4, 2, 1) if run.batch_size % n == 0)
    cost = cost_of(run, gpus)
    peak = run.peak_tflops if isinstance(run.peak_tflops, float) else PEAKS[run.precision]
    pace = MFU * peak * 1e12  # FLOP/s of one GPU
    batches = run.batch_plan.batches_before(run.steps)
    flops = float(cost.update) * batches
    speed = run.batch_size * gpus * pace / cost.update
    return Estimate(cost, gpus, batches * run.batch_size, flops, peak, flops / pace / 3600, speed)


def data_note(run: Run) -> str:
    """Return where the shapes are from; UserError for data that the model does not fit.

    Args:
        run: with data.
    """
    from gen.training.checks import check_data

    path = getattr(run.data, "path", None)
    if run.data is None:
        return "none: an imported model needs --data to be trained"
    if path is not None and not Path(path).exists():
        return f"{path} is not there: sizes, channels and classes are those of the recipe's model"
    check_data(run.model, run.data, run.data.shape)
    return f"{type(run.data).__name__}, x of {list(run.data.shape)}; it fits the model"


def print_dry_run(run: Run, name: str, as_json: bool, folder: Path) -> None:
    """Print what a run would take, and how to start it.

    Args:
        run: what would be trained.
        name: of the recipe or method.
        as_json: whether to print one JSON object.
        folder: of the run.
    """
    from gen.training.papers.results import RESULTS

    published, note = RESULTS.get(name.replace("-", "_")), data_note(run)
    estimate = estimate_of(run)
    command = _command(folder, estimate.gpus)
    if as_json:
        print(json.dumps(_json(run, estimate, published, note, command), indent=2))
        return
    print(f"{name}: a dry run, nothing is trained\n\nsettings")
    for key, value in flatten(run):
        print(f"  --{key:<34} {value}")
    rows = _rows(run, estimate, published, note, command)
    print("", *(f"{head:<12}{text}" for head, text in rows), sep="\n")


def _json(run: Run, estimate: Estimate, published: Published | None, data: str, command: str) -> Json:
    from gen.config.spec import spec_of

    about = dataclasses.asdict(estimate)
    for key in ("memory", "lean"):
        memory = getattr(estimate.cost, key)
        about["cost"][key] = memory and {**about["cost"][key], "peak": memory.peak}
    cited = published and dataclasses.asdict(published)
    return {"run": spec_of(run, named=False), **about, "mfu": MFU, "published": cited, "data": data, "command": command}


def gib(size: int) -> str:
    """Return a number of bytes in GiB, to three digits.

    Args:
        size: bytes.
    """
    return f"{size / GIB:.3g}"


def _rows(run: Run, estimate: Estimate, published: Published | None, data: str, command: str) -> list[tuple[str, str]]:
    """Return what is printed below the settings, by heading."""
    cost, unit = estimate.cost, "tokens" if _is_text(run) else "samples"
    recomputes = run.gradient_checkpointing and cost.lean is not None
    memory = cost.lean if run.gradient_checkpointing and cost.lean else cost.memory
    each = run.model.length if _is_text(run) else 1
    counts = [f"{role} {a:,} trained{f', {b:,} frozen' if b else ''}" for role, (a, b) in cost.parameters.items()]
    forward = "" if cost.forward is None else f"{cost.forward / 2e9:.5g} GMACs for one evaluation of one sample; "
    parts = ("weights", "gradients", "buckets", "optimiser", "averages", "activations")
    listed = ", ".join(f"{part} {gib(getattr(memory, part))}" for part in parts)
    lean = f"; {gib(cost.lean.peak)} with --gradient-checkpointing true" if cost.lean and not recomputes else ""
    place = f"on each of {estimate.gpus} GPUs, {cost.micro_batch} at a time"
    rate = f"{MFU:.0%} of {estimate.peak_tflops:g} TFLOP/s, which is assumed"
    days = estimate.hours / estimate.gpus / 24
    return [
        ("parameters", "; ".join(counts)),
        ("operations", f"{forward}{cost.update:.4g} FLOP for an update of {run.batch_size}"),
        ("memory", f"{gib(memory.peak)} GiB {place}{lean}; CUDA's own is not counted"),
        ("", f"{listed} GiB"),
        ("data", data),
        ("training", f"{run.steps:,} updates, {estimate.samples * each:.4g} {unit}, {estimate.flops:.3g} FLOP"),
        ("", f"{estimate.hours:,.0f} GPU-hours, {days:.3g} days, at {rate}: {estimate.samples_per_second * each:,.0f} "
             f"{unit}/s"),
        ("published", _cited(published)),
        ("start", command),
        *(("note", note) for note in cost.notes),
    ]  # fmt: skip


def _cited(published: Published | None) -> str:
    if published is None or not published.result:
        return "no result of this recipe"
    other = f"; {published.other}" if published.other else ""
    doubt = "" if published.checked else " (from memory)"
    return f"{published.result} ({published.by}){doubt}{other}. Cited, not measured here"


def _is_text(run: Run) -> bool:
    return hasattr(run.model, "vocab_size")


def _command(folder: Path, gpus: int) -> str:
    """Return this command line for so many GPUs."""
    words = [word for word in sys.argv[1:] if word not in ("--dry-run", "--dry_run", "--json")]
    out = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out", str(folder)]
    return f"torchrun --nproc-per-node {gpus} -m gen {shlex.join([*words, *out])}"
