"""Resuming: the checkpoint a run continues from, whether it is of the same run, and what computed it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json, anchored, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.training.log import read_run_file
from gen.training.older_runs import check_resumable
from gen.training.run import RESUMABLE, Run, run_from, run_spec
from gen.training.stages import Stages
from gen.training.state import store_null_text

__all__ = ["Start", "denoiser_of", "load_init", "provenance", "resume_from", "teacher_of", "versions"]

PLANS = ("batch_plan", "schedule")
WEIGHTS_ONLY = "weights without the optimiser's state"


@dataclass(frozen=True)
class Start:
    """The state that a run continues from.

    Attributes:
        checkpoint: the folder; None for a new run.
        line: the run's line from here on, see gen.config.checkpoints.lineage.
        moved: whether the run's newest state is another one, until a checkpoint of this line is written.
    """

    checkpoint: Path | None = None
    line: tuple[int, ...] = ()
    moved: bool = False


def resume_from(run: Run, folder: Path, resume: str, sources: Mapping[str, str]) -> Start:
    """Return from what a run continues.

    Args:
        run: the run.
        folder: its folder.
        resume: "auto", "never" or a path, as of gen.train.
        sources: the run's fingerprints (gen.training.sources).

    Raises:
        UserError: for a folder or a checkpoint of another run or with other sources, and if there is nothing whole to
            continue from.
    """
    if (folder / "manifest.json").exists():
        raise UserError(f"{folder} is itself a checkpoint: choose another folder, and start from this one by --init")
    if resume not in ("auto", "never"):
        return _start_at(run, folder, Path(resume), sources)
    newest = checkpoints.newest(folder / "checkpoints")
    if newest is None and any((folder / "checkpoints").glob("step-*")):
        raise UserError(
            f"every checkpoint in {folder / 'checkpoints'} is damaged: mend or remove them, or train elsewhere"
        )
    if resume == "never" and (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run: choose another folder, or resume it")
    if newest is None:
        if (folder / "run.json").exists():
            _check_same(run, sources, read_run_file(folder / "run.json"), folder)
        if (folder / "final").exists():
            raise UserError(f"{folder} has final/, {WEIGHTS_ONLY}, and no checkpoints: train elsewhere, or remove it")
        return Start()
    manifest = checkpoints.read(newest, verify=False)
    _check_same(run, sources, manifest, newest)
    return Start(newest, tuple(manifest["line"]))


def _start_at(run: Run, folder: Path, given: Path, sources: Mapping[str, str]) -> Start:
    """Return the start at a given checkpoint, or at the newest one of a given run folder."""
    checkpoint = checkpoints.newest(given / "checkpoints") or checkpoints.locate(given)
    manifest = checkpoints.read(checkpoint, verify=False)
    _check_same(run, sources, manifest, checkpoint)
    if not any(name.startswith("state/") for name in manifest["files"]):
        raise UserError(f"{checkpoint} has {WEIGHTS_ONLY}: resume from one of a run's checkpoints/")
    newest = checkpoints.newest(folder / "checkpoints")
    if newest is not None and checkpoints.read(newest, verify=False)["sha256"] == manifest["sha256"]:
        return Start(newest, tuple(manifest["line"]))
    try:
        line = (*checkpoints.manifest_of(folder)["line"], manifest["step"])
    except UserError:  # there is no other line here
        line = tuple(manifest["line"])
    return Start(checkpoint, line, moved=True)


def _check_same(run: Run, sources: Mapping[str, str], info: Json, folder: Path) -> None:
    """Compare settings; sources that both runs have by their content, for they may have another name now."""
    check_resumable(info["run"], folder)
    before = run_from(info["run"], folder)
    ours, theirs = anchored(run_spec(run)), anchored(run_spec(before))
    there = info.get("sources", {})
    named = sources.keys() & there.keys()
    step = info.get("step", 0)
    free = RESUMABLE | {key for key in PLANS if _agree(getattr(run, key), getattr(before, key), step)}
    differs = [line for key in ours if key not in free for line in _differences(key, ours[key], theirs[key], named)]
    changed = {key for key in named if sources[key] != there[key]}
    if any(line.startswith("data") for line in differs):  # the data's fingerprints follow their settings
        changed = {key for key in changed if key.partition(".")[0] not in ("data", "validation")}
    if changed:
        differs.append(f"the content of {', '.join(sorted(changed))} differs")
    if differs:
        raise UserError(
            f"{folder} is of another run: {'; '.join(differs)}. Choose the same settings and sources; or another "
            f"folder, with --init {folder} to start from these weights"
        )


def _agree(ours: object, theirs: object, step: int) -> bool:
    """Return whether two plans are one until a step: what is to come may be planned anew."""
    return isinstance(ours, Stages) and isinstance(theirs, Stages) and ours.until(step) == theirs.until(step)


def _differences(key: str, ours: object, theirs: object, named: Collection[str] = ()) -> list[str]:
    """What differs, by dotted key, each in a few words; keys in `named` are compared by content elsewhere."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [line for k in ours for line in _differences(f"{key}.{k}", ours[k], theirs[k], named)]
    short = [text if len(text) <= 60 else text[:57] + "..." for text in (str(theirs), str(ours))]
    return [] if ours == theirs or key in named else [f"{key} ({short[0]} there, {short[1]} now)"]


def load_init(run: Run, net: nn.Module) -> str:
    """Load the weights of run.init into a new network; where classes are others, the labels' start anew, or go.

    Args:
        run: with `init`.
        net: changed in place.

    Returns:
        What is to be said about it; "" for nothing.

    Raises:
        UserError: in one line, for the weights of another network.
    """
    folder = str(run.init)
    ours, theirs = (
        spec_of(spec) for spec in (run.model, run_from(checkpoints.manifest_of(folder)["run"], folder).model)
    )
    given, fresh = denoiser_of(folder).net.state_dict(), net.state_dict()
    classes = (theirs.get("classes"), ours.get("classes"))
    anew: list[str] = []
    gone: list[str] = []
    if classes[0] != classes[1] and {**theirs, "classes": classes[1]} == ours:
        anew = [name for name, value in fresh.items() if name not in given or given[name].shape != value.shape]
        gone = sorted(given.keys() - fresh.keys())
    if run.lora is not None and (anew or gone):
        raise UserError(f"lora: {folder} has {classes[0]} classes and this run {classes[1]}: adapters change no labels")
    try:
        net.load_state_dict({k: v for k, v in given.items() if k not in gone} | {name: fresh[name] for name in anew})
    except RuntimeError:  # its message has a line for every tensor
        other = f"a {theirs['name']}, not a {ours['name']}"
        why = other if ours["name"] != theirs["name"] else "; ".join(_differences("model", ours, theirs))
        raise UserError(f"init: the weights of {folder} do not fit this model: {why}") from None
    store_null_text(run, net)  # that of this run's data, not of the one before
    said = [f"{', '.join(names)} {what}" for names, what in ((anew, "starts anew"), (gone, "is left out")) if names]
    return f"init: {', '.join(said)}: {classes[0]} classes there, {classes[1]} now" if said else ""


def denoiser_of(folder: str, device: str = "cpu") -> Denoiser:
    """Load the model of a run folder or of one checkpoint as a denoiser.

    A text model has no parameterisation; its weights are float32, whatever the file's precision.

    Args:
        folder: the folder.
        device: where to put the network.
    """
    from gen.pipeline import Pipeline, load

    pipeline = load(folder, device=device)
    if isinstance(pipeline, Pipeline):
        return cast(Denoiser, pipeline.denoiser)
    return Denoiser(pipeline.net.float(), run_from(pipeline.info["run"], folder).path, cast(Any, None))


def teacher_of(run: Run, device: str = "cpu") -> Denoiser | None:
    """Return the teacher of a run, or of adapters of a network given as an object that network; None without.

    Args:
        run: its `teacher` and its model.
        device: where to put the network.
    """
    if run.teacher is None and run.given_base is not None:
        return Denoiser(run.model.frozen().to(device).eval(), run.path, run.parameterisation)
    return denoiser_of(run.teacher, device) if run.teacher else None


def provenance(run: Run, command: str) -> Json:
    """Return what run.json says of a run and of what computes it.

    Args:
        run: the run.
        command: that started it.
    """
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return {"run": anchored(run_spec(run)), "command": command, "written": written, "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of gen (with its commit), Python and torch."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"gen": gen.__version__, "commit": _commit(), "python": python, "torch": torch.__version__}


@functools.cache  # of the code that runs, whatever becomes of the files meanwhile
def _commit() -> str:
    here = str(Path(__file__).resolve().parent)
    git = ["git", "-C", here, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
