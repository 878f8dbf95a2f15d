"""Resuming: the checkpoint a run continues from, whether it is of the same run, and what computed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.training.run import RESUMABLE, Run, run_from, run_spec

__all__ = ["denoiser_of", "load_init", "parent_hash", "resume_from", "versions"]


def resume_from(run: Run, folder: Path, resume: str) -> Path | None:
    """Return the checkpoint from which a run continues, or None for a new run.

    Args:
        run: the run.
        folder: its folder.
        resume: "auto", "never" or a path, as of gen.train.

    Raises:
        UserError: for a folder or a checkpoint of another run, and if every checkpoint is damaged.
    """
    if resume not in ("auto", "never"):
        given = checkpoints.locate(Path(resume))
        _check_same(run, checkpoints.manifest_of(given)["run"], given)
        return given
    newest = checkpoints.newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if newest is None and any((folder / "checkpoints").glob("step-*")):
        raise UserError(
            f"every checkpoint in {folder / 'checkpoints'} is damaged: mend or remove them, or train elsewhere"
        )
    if resume == "never" and (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run: choose another folder, or resume it")
    if newest is not None:
        _check_same(run, checkpoints.manifest_of(newest)["run"], newest)
    elif (folder / "run.json").exists():
        _check_same(run, read_json(folder / "run.json")["run"], folder)
    return newest


def _check_same(run: Run, spec: Json, folder: Path) -> None:
    ours, theirs = run_spec(run), run_spec(run_from(spec))
    changed = [line for key in ours if key not in RESUMABLE for line in _differences(key, ours[key], theirs[key])]
    if changed:
        raise UserError(
            f"{folder} is of another run: {'; '.join(changed)}. Choose another folder, or the same settings"
        )


def _differences(key: str, ours: object, theirs: object) -> list[str]:
    """What differs, by dotted key, each in a few words."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [line for k in ours for line in _differences(f"{key}.{k}", ours[k], theirs[k])]
    short = [text if len(text) <= 60 else text[:57] + "..." for text in (str(theirs), str(ours))]
    return [] if ours == theirs else [f"{key} ({short[0]} there, {short[1]} now)"]


def load_init(run: Run, net: nn.Module) -> None:
    """Load the weights of run.init into a new network.

    Args:
        run: with `init`.
        net: changed in place.

    Raises:
        UserError: in one line, for the weights of another network.
    """
    folder = str(run.init)
    ours, theirs = (spec_of(spec) for spec in (run.model, run_from(checkpoints.manifest_of(folder)["run"]).model))
    given = denoiser_of(folder)
    try:
        net.load_state_dict(given.net.state_dict())
    except RuntimeError:  # its message has a line for every tensor
        other = f"a {theirs['name']}, not a {ours['name']}"
        why = other if ours["name"] != theirs["name"] else "; ".join(_differences("model", ours, theirs))
        raise UserError(f"init: the weights of {folder} do not fit this model: {why}") from None


def denoiser_of(folder: str, device: str = "cpu") -> Denoiser:
    """Load the model of a run folder or of one checkpoint as a denoiser; without a parameterisation for text.

    Args:
        folder: the folder.
        device: where to put the network.
    """
    from gen.pipeline import Pipeline, load

    pipeline = load(folder, device=device)
    if isinstance(pipeline, Pipeline):
        return cast(Denoiser, pipeline.denoiser)
    return Denoiser(pipeline.net, run_from(pipeline.info["run"]).path, cast(Any, None))


def parent_hash(run: Run) -> str | None:
    """Return the manifest's sha256 of the checkpoint a run learns or starts from, or None.

    Args:
        run: with `teacher` or `init`, or with neither.
    """
    parent = run.teacher or run.init
    return checkpoints.manifest_of(parent)["sha256"] if parent else None


def versions() -> dict[str, str]:
    """Return the versions of gen (with its commit), Python and torch."""
    here = str(Path(__file__).resolve().parent)
    git = ["git", "-C", here, "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"gen": gen.__version__, "commit": commit, "python": python, "torch": torch.__version__}
