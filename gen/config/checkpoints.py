"""Checkpoints: a folder of safetensors and one manifest.json, absent or complete, never in between.

Everything is written under a temporary name and synced; the manifest, with the sha256 of every file, comes last; then
the folder is renamed and only then are older ones removed. Reading verifies every byte. Nothing is ever unpickled.

A file may lie in shards, net-00001-of-00002.safetensors beside net-00002-of-00002.safetensors: the manifest names the
whole in "shard_of" of each, and in "slices" the rows of every divided tensor that it has, from "start" to "stop", of
how many ("shape"). The first shard has rows of every tensor, and all that is not divided.
"""

from __future__ import annotations

import errno
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.formats import NEWEST, NewerFormat, check_format
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json, is_sealed, sealed
from gen.config.tensor_files import Damaged, read_file, write_file
from gen.config.writing import name_whole, partial_name, sync, write_json

__all__ = [
    "age", "checkpoint_name", "complete", "file_names", "files_of", "lineage", "locate", "manifest_of",
    "newest", "prune", "read", "read_tensors", "remove", "write", "write_files",
]  # fmt: skip

TYPES = {"run": dict, "role": str, "step": int, "shape": list, "classes": int, "line": list}  # of a manifest's values
Rows = Callable[[str, tuple[int, ...]], range | None]
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
    unfinished = folder.parent / partial_name(folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        complete(folder, unfinished, manifest, write_files(folder, unfinished, files, beside))
    except OSError as error:
        name_whole(error, folder, unfinished)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_files(
    folder: Path,
    unfinished: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    beside: Mapping[str, bytes] | None = None,
) -> dict[str, Json]:
    """Write files of a checkpoint that is not there yet; several processes may write into one.

    Args:
        folder: the checkpoint's folder.
        unfinished: what `complete` renames to it.
        files, beside: see `write`.

    Returns:
        Sha256 and bytes of each, by name.
    """
    for name, tensors in files.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(f"{folder.name}/{name}: {key} is not finite; not saved")
    hashes = {}
    for name in (*files, *(beside or {})):
        path = unfinished / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in files:
            sha256 = write_file(path, files[name])
        else:
            path.write_bytes((beside or {})[name])
            sync(path)
            sha256 = file_sha256(path)
        hashes[name] = {"sha256": sha256, "bytes": path.stat().st_size}
    return hashes


def complete(folder: Path, unfinished: Path, manifest: Mapping[str, object], files: Mapping[str, Json]) -> None:
    """Write the manifest of files that are all there, and give their folder its name.

    Args:
        folder: the checkpoint's folder; an earlier one of the same name is replaced.
        unfinished: of `write_files`, beside it.
        manifest: see `write`.
        files: what `write_files` returned, of all processes.
    """
    aside = folder.parent / partial_name(folder.name, "aside")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(errno.EEXIST, "File exists", str(folder))
    write_json(unfinished / "manifest.json", sealed({"format": NEWEST["checkpoint"], **manifest, "files": files}))
    for directory in {unfinished, *(f.parent for f in unfinished.rglob("*"))}:
        sync(directory)
    if folder.exists():  # the same step again: the old one steps aside before it goes
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        unfinished.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def read(folder: Path, verify: bool = True) -> Json:
    """Read the manifest of a checkpoint and verify every file it names.

    Args:
        folder: the checkpoint's folder.
        verify: False reads the manifest alone.

    Raises:
        UserError: names the file that is missing or damaged.
    """
    manifest: Json = read_json(folder / "manifest.json")
    check_format(manifest, NEWEST["checkpoint"], f"the checkpoint {folder}")
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
        wrong += [] if _are_slices(about) else ["slices"]
    wrong += [key for key, kind in TYPES.items() if key in manifest and not isinstance(manifest[key], kind)]
    lists = [key for key in ("shape", "line") if isinstance(manifest.get(key), list)]
    wrong += [key for key in lists if not all(type(number) is int and number >= 0 for number in manifest[key])]
    if wrong:
        raise UserError(f"{folder}/manifest.json is none that gen writes: {wrong[0]} is of another type")


def _are_slices(about: Json) -> bool:
    """Return whether what a manifest says of a file's shards can be so."""
    slices = about.get("slices", {})
    if not isinstance(about.get("shard_of", ""), str) or not isinstance(slices, dict):
        return False
    for cut in slices.values():
        shape = cut.get("shape") if isinstance(cut, dict) else None
        numbers = [cut.get("start"), cut.get("stop"), *shape] if isinstance(shape, list) else []
        if len(numbers) < 3 or not all(type(n) is int and n >= 0 for n in numbers):
            return False
    return True


def file_names(manifest: Json) -> set[str]:
    """Return the names that `read_tensors` takes: those of whole files, whether or not they lie in shards.

    Args:
        manifest: that `read` returned.
    """
    return {about.get("shard_of", name) for name, about in manifest["files"].items()}


def files_of(manifest: Json, name: str) -> dict[str, Json]:
    """Return what a manifest says of a file, by name; of its shards, if it lies in some; nothing if there is none.

    Args:
        manifest: that `read` returned.
        name: of the whole file.
    """
    return {key: about for key, about in manifest["files"].items() if about.get("shard_of", key) == name}


def manifest_of(folder: str | Path) -> Json:
    """Read the manifest of the checkpoint that a folder stands for, see `locate`; its files are not verified.

    Args:
        folder: of a run or of a checkpoint.
    """
    return read(locate(Path(folder)), verify=False)


def read_tensors(
    folder: Path,
    name: str,
    manifest: Json,
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    rows: Rows = lambda name, shape: None,
) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint, verified against its manifest.

    Args:
        folder: the checkpoint's folder.
        name: the file's name relative to the folder; of the whole one, if it lies in shards.
        manifest: the manifest that `read` returned.
        convert: what becomes of each tensor as soon as it is read, by name, so that both are in memory one at a time.
        rows: returns by name and shape which of its rows (indices of the first dimension) are to be returned, None for
            the tensor; shards that have none of them are not read.
    """
    files = files_of(manifest, name)
    if not files:
        raise UserError(f"{folder} has no file {name!r}; it has {', '.join(sorted(file_names(manifest)))}")
    tensors, missing = dict[str, Tensor](), dict[str, int]()

    def place(slices: Json, key: str, tensor: Tensor) -> Tensor:
        """Copy those rows of a shard that are wanted, or of a whole tensor, to where they belong."""
        cut = slices.get(key, {"start": 0, "shape": tensor.shape})
        wanted = rows(key, tuple(cut["shape"]))
        if key not in slices and wanted is None:
            tensors[key] = convert(key, tensor)
            return tensors[key]
        wanted, start = range(cut["shape"][0]) if wanted is None else wanted, cut["start"]
        if key not in tensors:
            tensors[key], missing[key] = tensor.new_empty(len(wanted), *cut["shape"][1:]), len(wanted)
        begin, end = max(wanted.start, start), min(wanted.stop, start + len(tensor))
        if begin < end:
            tensors[key][begin - wanted.start : end - wanted.start] = tensor[begin - start : end - start]
            missing[key] -= end - begin
        return tensors[key]

    for i, (file, about) in enumerate(sorted(files.items())):
        slices = about.get("slices", {})
        if i and not any(_overlap(cut, rows(key, tuple(cut["shape"]))) for key, cut in slices.items()):
            continue
        path = _inside(folder, file)
        try:
            read_file(path, about["sha256"], partial(place, slices))
        except Damaged:
            raise _damage(path, about) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if any(missing.values()):
        raise UserError(f"{folder}: the shards of {name} do not add up: {next(k for k in missing if missing[k])}")
    return {key: convert(key, tensor) if key in missing else tensor for key, tensor in tensors.items()}


def _overlap(cut: Json, wanted: range | None) -> bool:
    return wanted is None or max(cut["start"], wanted.start) < min(cut["stop"], wanted.stop)


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
        held = "holds no checkpoint, and no model_index.json of a pipeline of diffusers"
        problem = held if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
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
        except NewerFormat:  # an older one in its stead would send the run back
            raise
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
