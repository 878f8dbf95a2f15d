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
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError

__all__ = ["FORMAT", "checkpoint_name", "newest", "prune", "read", "read_json", "read_tensors", "write", "write_json"]

FORMAT = 1
_STEP = re.compile(r"step-(\d{7,})")


def write(
    folder: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """A complete checkpoint at `folder`, or, if anything fails, nothing there and what was there before untouched.

    files: relative name -> tensors by name. beside: other files, such as a tokeniser's. Raises NonFinite before writing
    weights that are not finite, OSError as the file system does.
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
        _write_synced(partial / "manifest.json", body | {"sha256": _digest(body)})
        for directory in {partial, *(f.parent for f in partial.rglob("*"))}:
            _sync(directory)
        if folder.exists():  # the same step again: the old one steps aside before it goes
            folder.rename(folder.parent / f".partial-old-{folder.name}-{os.getpid()}")
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        for stale in folder.parent.glob(f".partial-*{folder.name}-{os.getpid()}"):
            shutil.rmtree(stale, ignore_errors=True)


def read(folder: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint, after every file it names has been found whole. UserError says what is not."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f"{folder}: checkpoint format {given!r}; this version reads format {FORMAT}")
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    if manifest.get("sha256") != _digest(body):
        raise UserError(f"{folder}/manifest.json is damaged: its content does not match its own sha256")
    for name in manifest["files"] if verify else ():
        _read_verified(folder, name, manifest)
    return manifest


def read_tensors(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, verified against the manifest that `read` returned."""
    from safetensors.torch import load

    if name not in manifest["files"]:
        raise UserError(f"{folder} has no file {name!r}; it has {', '.join(sorted(manifest['files']))}")
    return load(_read_verified(folder, name, manifest))


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a folder of checkpoints; damaged ones are passed over by name."""
    steps = {int(m[1]): path for path in folder.glob("step-*") if (m := _STEP.fullmatch(path.name))}
    for step in sorted(steps, reverse=True):
        try:
            read(steps[step])
            return steps[step]
        except UserError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
    return None


def prune(folder: Path, keep: int, spare: Collection[str] = ()) -> None:
    """Removes all but the `keep` newest whole checkpoints, and what killed runs left half written.

    Damaged ones are neither counted nor removed: they may be all that is left of something. spare: names of which the
    same is true.
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
    """Whether a manifest and all its files, by size, are there: what pruning may know without reading every byte."""
    try:
        manifest = read(folder, verify=False)
        return all((folder / name).stat().st_size == about["bytes"] for name, about in manifest["files"].items())
    except (UserError, OSError):
        return False


def checkpoint_name(step: int) -> str:
    return f"step-{step:07d}"


def read_json(path: Path) -> Any:
    """A JSON file; UserError names it if it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: no JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, replacing the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}-{os.getpid()}")
    _write_synced(partial, value)
    partial.replace(path)


def _read_verified(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
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


def _digest(body: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_synced(path: Path, value: Any) -> None:
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
