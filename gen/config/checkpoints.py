"""Checkpoints: a folder of safetensors and one manifest.json, absent or complete, never in between.

Everything is written under a temporary name and synced; the manifest, with the sha256 of every file, comes last; then
the folder is renamed and only then are older ones removed. Reading verifies every byte. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json, is_sealed, sealed
from gen.config.tensor_files import Damaged, read_file, write_file
from gen.config.writing import name_whole, partial_name, sync, write_json

__all__ = [
    "FORMAT", "age", "checkpoint_name", "lineage", "locate", "manifest_of", "newest", "prune", "read", "read_tensors",
    "remove", "write",
]  # fmt: skip

FORMAT = 1
TYPES = {"run": dict, "role": str, "step": int, "shape": list, "classes": int, "line": list}  # of a manifest's values
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
    for name, tensors in files.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(f"{folder.name}/{name}: {key} is not finite; not saved")
    partial, aside = (folder.parent / partial_name(folder.name, kind) for kind in ("partial", "aside"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        hashes = {}
        for name in (*files, *(beside or {})):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in files:
                sha256 = write_file(path, files[name])
            else:
                path.write_bytes((beside or {})[name])
                sync(path)
                sha256 = file_sha256(path)
            hashes[name] = {"sha256": sha256, "bytes": path.stat().st_size}
        body = {"format": FORMAT, **manifest, "files": hashes}
        write_json(partial / "manifest.json", sealed(body))
        for directory in {partial, *(f.parent for f in partial.rglob("*"))}:
            sync(directory)
        if folder.exists():  # the same step again: the old one steps aside before it goes
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        try:
            partial.rename(folder)
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
        sync(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        name_whole(error, folder, partial)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    if not is_sealed(manifest):
        raise UserError(f"{folder}/manifest.json is damaged: its content does not match its own sha256")
    _check_types(folder, manifest)
    for name in manifest["files"] if verify else ():
        _verify(folder, name, manifest)
    return manifest


def _check_types(folder: Path, manifest: Json) -> None:
    """Refuse a manifest of which a value is of another type than `write` is given; who forges one may say anything."""
    files = manifest.get("files")
    right = isinstance(files, dict) and all(isinstance(about, dict) for about in files.values())
    wrong = [] if right else ["files"]
    for about in files.values() if isinstance(files, dict) and right else ():
        wrong += [key for key, kind in {"sha256": str, "bytes": int}.items() if not isinstance(about.get(key), kind)]
    wrong += [key for key, kind in TYPES.items() if key in manifest and not isinstance(manifest[key], kind)]
    lists = [key for key in ("shape", "line") if isinstance(manifest.get(key), list)]
    wrong += [key for key in lists if not all(type(number) is int and number >= 0 for number in manifest[key])]
    if wrong:
        raise UserError(f"{folder}/manifest.json is none that gen writes: {wrong[0]} is of another type")


def manifest_of(folder: str | Path) -> Json:
    """Read the manifest of the checkpoint that a folder stands for, see `locate`; its files are not verified.

    Args:
        folder: of a run or of a checkpoint.
    """
    return read(locate(Path(folder)), verify=False)


def read_tensors(
    folder: Path, name: str, manifest: Json, convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint, verified against its manifest.

    Args:
        folder: the checkpoint's folder.
        name: the file's name relative to the folder.
        manifest: the manifest that `read` returned.
        convert: what becomes of each tensor as soon as it is read, by name, so that both are in memory one at a time.
    """
    if name not in manifest["files"]:
        raise UserError(f"{folder} has no file {name!r}; it has {', '.join(sorted(manifest['files']))}")
    path = _inside(folder, name)
    try:
        return read_file(path, manifest["files"][name]["sha256"], convert)
    except Damaged:
        raise _damage(path, manifest["files"][name]) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of the run's own line; a warning names each damaged one that is skipped.

    Args:
        folder: a folder of checkpoints step-*.

    Returns:
        The checkpoint's folder; None if there is none.
    """
    return _newest(folder.glob("step-*"))


def lineage(folder: Path) -> dict[Path, Json]:
    """Return the checkpoints that led to the newest one, with their manifests, oldest first; files are not read.

    A run that goes back to an earlier step, and on from there, starts a new line. A manifest's "line" lists the steps
    at which its run went back: none for the first line, [10] after a return to step 10, [10, 5] after a second one.
    Later lines supersede earlier ones; on one line, later steps do.

    Args:
        folder: a folder of checkpoints step-*.
    """
    known = _whole(folder)
    end = next(iter(known.values()), None)
    return {path: manifest for path, manifest in reversed(known.items()) if end and _led_to(manifest, end)}


def age(manifest: Json) -> tuple[int, int]:
    """Return a key that sorts the checkpoints of one run from the oldest to the newest, see `lineage`.

    Args:
        manifest: of a checkpoint.
    """
    return len(manifest.get("line", ())), manifest.get("step", 0)


def locate(folder: Path) -> Path:
    """Return the checkpoint a folder stands for: itself, or the newest complete one of a run's own line.

    That is final/ if the run ended there, and not if it went on, or back, afterwards.

    Args:
        folder: of a run or of a checkpoint.

    Raises:
        UserError: if there is none.
    """
    if (folder / "manifest.json").exists():
        return folder
    last = _newest([folder / "final", *folder.glob("checkpoints/step-*")])
    if last is None and (folder / "final" / "manifest.json").exists():
        read(folder / "final")  # says what is damaged
    if last is None:
        problem = "holds no checkpoint" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}: give the folder of a run, or one of its checkpoints")
    return last


def prune(folder: Path, keep: int, spare: Collection[str] = ()) -> None:
    """Remove all but the newest whole checkpoints of the run's own line, and all of other lines.

    Damaged ones are neither counted nor removed: they may be all that is left of a run.

    Args:
        folder: a folder of checkpoints step-*.
        keep: number of checkpoints that stay, at least 1.
        spare: names of checkpoints of the line that are neither counted nor removed.
    """
    line = lineage(folder)
    superseded = [path for path in _whole(folder) if path not in line]
    for old in [*superseded, *[path for path in line if path.name not in spare][:-keep]]:
        remove(old)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one that is half removed no longer looks like one.

    Args:
        checkpoint: its folder.
    """
    aside = checkpoint.with_name(partial_name(checkpoint.name))
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _manifests(folders: Iterable[Path]) -> tuple[dict[Path, Json], dict[Path, UserError]]:
    """Return the checkpoints' manifests, newest first and final/ before others of its age; and what is damaged."""
    known, damaged = dict[Path, Json](), dict[Path, UserError]()
    for path in sorted(p for p in folders if _STEP.fullmatch(p.name) or (p / "manifest.json").exists()):
        try:
            known[path] = read(path, verify=False)
            if (named := _STEP.fullmatch(path.name)) and known[path].get("step", int(named[1])) != int(named[1]):
                step = known.pop(path)["step"]
                raise UserError(f"{path} is of step {step}: was it copied or renamed?")
        except UserError as error:
            damaged[path] = error
    newest_first = sorted(known.items(), key=lambda item: (*age(item[1]), item[0].name == "final"), reverse=True)
    return dict(newest_first), damaged


def _newest(folders: Iterable[Path]) -> Path | None:
    """Return the newest complete checkpoint; final/ is verified by who reads it."""
    known, damaged = _manifests(folders)
    last = None
    for path, manifest in known.items():
        try:
            for name in manifest["files"] if path.name != "final" else ():
                _verify(path, name, manifest)
            last = path
            break
        except UserError as error:
            damaged[path] = error
    for path, problem in damaged.items():
        older = last is not None and path not in known and path.name != "final" and path.name < last.name
        if not older:  # it would not have been taken anyway
            warnings.warn(f"passing over a damaged checkpoint: {problem}", stacklevel=3)
    return last


def _whole(folder: Path) -> dict[Path, Json]:
    """Return the checkpoints step-* of which all files are there, by size, newest first; this reads manifests only."""
    known, _ = _manifests(folder.glob("step-*"))
    return {path: manifest for path, manifest in known.items() if _is_whole(path, manifest)}


def _led_to(manifest: Json, end: Json) -> bool:
    """Return whether the run was at one checkpoint on its way to another."""
    line, whole = manifest.get("line", []), end.get("line", [])
    return whole[: len(line)] == line and manifest["step"] <= min([*whole[len(line) :], end["step"]])


def _is_whole(folder: Path, manifest: Json) -> bool:
    """Return whether all files are there, by size; this reads no file."""
    try:
        return all((folder / name).stat().st_size == about["bytes"] for name, about in manifest["files"].items())
    except OSError:
        return False


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder, such as step-0001500.

    Args:
        step: training steps taken.
    """
    return f"step-{step:07d}"


def _verify(folder: Path, name: str, manifest: Json) -> None:
    path = _inside(folder, name)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if found != manifest["files"][name]["sha256"]:
        raise _damage(path, manifest["files"][name])


def _inside(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{folder}/manifest.json names {name!r}, which lies outside the checkpoint")
    return folder / name


def _damage(path: Path, about: Json) -> UserError:
    size, expected = path.stat().st_size, about["bytes"]
    what = f"has {size} bytes instead of {expected}" if size != expected else "does not match its sha256"
    return UserError(f"{path} is damaged: it {what}")
