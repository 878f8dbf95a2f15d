"""Where a run goes on from, whether it is still the same run, and what computed it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.diffusion.denoiser import Denoiser
from gen.pipeline import Pipeline, load, locate
from gen.training.run import FREE, Run, run_from, run_spec

__all__ = ["begin_from", "denoiser_of", "parent_hash", "resume_from", "versions"]


def resume_from(run: Run, folder: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, if any; refuses a folder that holds another run."""
    if resume not in ("auto", "never"):
        given = locate(Path(resume))
        _same_run(run, given)
        return given
    place = checkpoints.newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if place is None and any((folder / "checkpoints").glob("step-*")):
        raise UserError(
            f"every checkpoint in {folder / 'checkpoints'} is damaged: mend or remove them, or train elsewhere"
        )
    if resume == "never" and (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run: choose another folder, or resume it")
    if place is not None:
        _same_run(run, place)
    elif (folder / "run.json").exists():
        _same(run, checkpoints.read_json(folder / "run.json")["run"], folder)
    return place


def _same_run(run: Run, place: Path) -> None:
    _same(run, checkpoints.read(place, verify=False)["run"], place)


def _same(run: Run, spec: Mapping[str, Any], place: Path) -> None:
    ours, theirs = run_spec(run), run_spec(run_from(spec))
    changed = [line for key in ours if key not in FREE for line in _differences(key, ours[key], theirs[key])]
    if changed:
        raise UserError(f"{place} is of another run: {'; '.join(changed)}. Choose another folder, or the same settings")


def _differences(key: str, ours: Any, theirs: Any) -> list[str]:
    """What differs, by dotted key, each in a few words."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [line for k in ours for line in _differences(f"{key}.{k}", ours[k], theirs[k])]
    short = [text if len(text) <= 60 else text[:57] + "..." for text in (str(theirs), str(ours))]
    return [] if ours == theirs else [f"{key} ({short[0]} there, {short[1]} now)"]


def begin_from(run: Run, net: nn.Module) -> None:
    """Gives a new network the weights in run.init; UserError, in one line, unless they are those of such a network."""
    folder = str(run.init)
    ours, theirs = (spec_of(spec) for spec in (run.model, run_from(_info(folder)["run"]).model))
    given = denoiser_of(folder)
    try:
        net.load_state_dict(given.net.state_dict())
    except RuntimeError:  # thousands of words on every tensor
        other = f"a {theirs['name']}, not a {ours['name']}"
        why = other if ours["name"] != theirs["name"] else "; ".join(_differences("model", ours, theirs))
        raise UserError(f"init: the weights of {folder} do not fit this model: {why}") from None


def denoiser_of(folder: str, device: str = "cpu") -> Denoiser:
    """The network, path and parameterisation (none for tokens) of a run folder or of one checkpoint."""
    made, nothing = load(folder, device=device), cast(Any, None)
    if isinstance(made, Pipeline):
        return cast(Denoiser, made.denoiser)
    return Denoiser(made.net, run_from(made.info["run"]).path, nothing)


def parent_hash(run: Run) -> str | None:
    """The manifest hash of the checkpoint a run learns from, or starts from."""
    parent = run.teacher or run.init
    return _info(parent)["sha256"] if parent else None


def _info(folder: str) -> dict[str, Any]:
    return checkpoints.read(locate(Path(folder)), verify=False)


def versions() -> dict[str, str]:
    """What computed this: gen and its commit, Python, torch."""
    where = Path(__file__).resolve().parent
    git = ["git", "-C", str(where), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"gen": gen.__version__, "commit": commit, "python": python, "torch": torch.__version__}
