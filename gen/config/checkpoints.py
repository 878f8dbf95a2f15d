"""Checkpoints: a folder of safetensors and one manifest.json, absent or complete, never in between.

Everything is written under a temporary name and synced; the manifest, with the sha256 of every file, comes last; then
the folder is renamed and only then are older ones removed. Reading verifies every byte. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.reading import read_json
from gen.config.spec import Json, digest

__all__ = [
    "FORMAT", "checkpoint_name", "locate", "manifest_of", "newest", "prune", "read", "read_tensors", "write",
    "write_json",
]  # fmt: skip

FORMAT = 1
_STEP = re.compile(r"step-(\d{7,})")


def write(
    folder: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, object],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a complete checkpoint; if anything fails, leave the folder as it was before.

    Args:
        folder: the checkpoint's folder; an earlier one of the same name is replaced.
        files: tensors by name, by file name relative to the folder.
        manifest: what manifest.json says beside the format and each file's sha256; JSON values only.
        beside: contents of other files by name, such as a tokeniser's.

    Raises:
        NonFinite: before anything is written, for weights that are not finite.
        OSError: as the file system does.
    """
    from safetensors.torch import save_file

    for name, tensors in files.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(f"{folder.name}/{name}: {key} is not finite; not saved")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".partial-{folder.name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        hashes = {}
        for name in (*files, *(beside or {})):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in files:
                save_file({k: v.detach().contiguous() for k, v in files[name].items()}, path)
            else:
                path.write_bytes((beside or {})[name])
            _sync(path)
            hashes[name] = {"sha256": _sha256(path.read_bytes()), "bytes": path.stat().st_size}
        body = {"format": FORMAT, **manifest, "files": hashes}
        _write_synced(partial / "manifest.json", body | {"sha256": digest(body)})
        for directory in {partial, *(f.parent for f in partial.rglob("*"))}:
            _sync(directory)
        if folder.exists():  # the same step again: the old one steps aside before it goes
            folder.rename(folder.parent / f".partial-old-{folder.name}-{os.getpid()}")
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        for stale in folder.parent.glob(f".partial-*{folder.name}-{os.getpid()}"):
            shutil.rmtree(stale, ignore_errors=True)


def read(folder: Path, verify: bool = True) -> Json:
    """Read the manifest of a checkpoint and verify every file it names.

    Args:
        folder: the checkpoint's folder.
        verify: False reads the manifest alone.

    Raises:
        UserError: names the file that is missing or damaged.
    """
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f"{folder}: checkpoint format {given!r}; this version reads format {FORMAT}")
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    if manifest.get("sha256") != digest(body):
        raise UserError(f"{folder}/manifest.json is damaged: its content does not match its own sha256")
    for name in manifest["files"] if verify else ():
        _read_verified(folder, name, manifest)
    return manifest


def manifest_of(folder: str | Path) -> Json:
    """Read the manifest of the checkpoint that a folder stands for, see `locate`; its files are not verified.

    Args:
        folder: of a run or of a checkpoint.
    """
    return read(locate(Path(folder)), verify=False)


def read_tensors(folder: Path, name: str, manifest: Json) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint, verified against its manifest.

    Args:
        folder: the checkpoint's folder.
        name: the file's name relative to the folder.
        manifest: the manifest that `read` returned.
    """
    from safetensors.torch import load

    if name not in manifest["files"]:
        raise UserError(f"{folder} has no file {name!r}; it has {', '.join(sorted(manifest['files']))}")
    return load(_read_verified(folder, name, manifest))


def newest(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step; a warning names each damaged one that is skipped.

    Args:
        folder: a folder of checkpoints step-*.

    Returns:
        The checkpoint's folder; None if there is none.
    """
    steps = {int(m[1]): path for path in folder.glob("step-*") if (m := _STEP.fullmatch(path.name))}
    for step in sorted(steps, reverse=True):
        try:
            read(steps[step])
            return steps[step]
        except UserError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
    return None


def locate(folder: Path) -> Path:
    """Return the checkpoint a folder stands for: itself, a run's final/, or else the run's newest complete one.

    Args:
        folder: of a run or of a checkpoint.

    Raises:
        UserError: if there is none.
    """
    for given in (folder, folder / "final"):
        if (given / "manifest.json").exists():
            return given
    last = newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if last is None:
        problem = "holds no checkpoint" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {problem}: give the folder of a run, or one of its checkpoints")
    return last


def prune(folder: Path, keep: int, spare: Collection[str] = ()) -> None:
    """Remove all but the newest whole checkpoints, and what killed runs left half written.

    Damaged ones are neither counted nor removed: they may be all that is left of a run.

    Args:
        folder: a folder of checkpoints step-*.
        keep: number of checkpoints that stay, at least 1.
        spare: names of checkpoints that are neither counted nor removed.
    """
    whole = [
        p for p in sorted(folder.glob("step-*")) if _STEP.fullmatch(p.name) and p.name not in spare and _is_whole(p)
    ]
    for old in whole[:-keep]:
        aside = old.with_name(f".partial-{old.name}")
        shutil.rmtree(aside, ignore_errors=True)
        old.rename(aside)  # a half-removed folder must not look like a checkpoint
    for stale in folder.glob(".partial-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Return whether a manifest and all its files, by size, are there; this reads no file whole."""
    try:
        manifest = read(folder, verify=False)
        return all((folder / name).stat().st_size == about["bytes"] for name, about in manifest["files"].items())
    except (UserError, OSError):
        return False


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder, such as step-0001500.

    Args:
        step: training steps taken.
    """
    return f"step-{step:07d}"


def write_json(path: Path, value: object) -> None:
    """Write strict JSON, replacing the file in one step.

    Args:
        path: the file; its folder is created.
        value: JSON values; NaN and infinity are refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}-{os.getpid()}")
    _write_synced(partial, value)
    partial.replace(path)


def _read_verified(folder: Path, name: str, manifest: Json) -> bytes:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{folder}/manifest.json names {name!r}, which lies outside the checkpoint")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise UserError(f"{folder}/{name} cannot be read: {error.strerror}") from None
    if _sha256(content) != manifest["files"][name]["sha256"]:
        size, expected = len(content), manifest["files"][name]["bytes"]
        what = f"has {size} bytes instead of {expected}" if size != expected else "does not match its sha256"
        raise UserError(f"{folder}/{name} is damaged: it {what}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_synced(path: Path, value: object) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
