"""Sources of a run: fingerprints of everything outside its settings that decides what it computes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json, digest, spec_of
from gen.data import DataSet
from gen.data.lib.tensors import content_hash
from gen.training.run import Run, run_from

__all__ = ["fingerprints", "network_hash", "parent_hash", "weights_hash"]


def fingerprints(run: Run, data: DataSet, held_out: DataSet | None = None) -> dict[str, str]:
    """Return a hash (hex) of the content of each source of a run, by dotted key.

    Sources are "data" and "validation", with the fingerprints of the opened splits; "model", of adapters that belong to
    a network that was given as an object, and of the network of a pipeline, by its weights; the folders of teacher and
    init, by the sha256 of the weights they are loaded with and by what these predict; and every other file or folder
    that a text among the settings names, such as an encoder's or a tokeniser's, by the sha256 over all its bytes (of a
    folder: over its files' relative names and bytes; a manifest.json stands for the files beside it). A part that reads
    more than its fields name lists it in an attribute `files`. Where data are kept does not matter, so keys below
    "data" have its fingerprint; the sampler is left out, as it may be changed.

    Args:
        run: the run.
        data: its training split, opened.
        held_out: its test split, if it is validated.

    Raises:
        UserError: for a teacher, or weights to start from, that cannot be read.
    """
    prints = {"data": data.fingerprint} | ({} if held_out is None else {"validation": held_out.fingerprint})
    foreign = run.model.module if hasattr(run.model, "encode_prompts") else run.given_base
    if foreign is not None:
        prints["model"] = network_hash(foreign)
    for key, text in _texts(run, ""):
        if key in ("teacher", "init"):
            prints[key] = weights_hash(Path(text))
        elif not key.startswith("sampler.") and _is_path(text):
            known = {"data.": data.fingerprint, "model.": prints.get("model")}.get(key[: key.find(".") + 1])
            prints[key] = known or _of_path(Path(text))
    return prints


def parent_hash(run: Run) -> str | None:
    """Return the manifest's sha256 of the checkpoint a run learns or starts from, or None.

    Args:
        run: with `teacher` or `init`, or with neither.
    """
    parent = run.teacher or run.init
    return checkpoints.manifest_of(parent)["sha256"] if parent else None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text among the settings, by dotted key."""
    inner: Json = {}
    if isinstance(value, str):
        yield key, value
    elif dataclasses.is_dataclass(value):
        inner = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if f.init and f.metadata.get("saved", True)
        }
        inner["files"] = list(map(str, getattr(value, "files", ())))
    elif isinstance(value, Mapping):
        inner = dict(value)
    elif isinstance(value, (list, tuple)):
        inner = dict(enumerate(value))  # type: ignore[arg-type]
    for name, part in inner.items():
        yield from _texts(part, f"{key}.{name}" if key else str(name))


def _is_path(text: str) -> bool:
    """Return whether a text names a file or folder that is there; a mere word never does, whatever lies around."""
    return (os.sep in text or "." in text) and os.path.exists(text)  # noqa: PTH110 - false for what cannot be a path


def weights_hash(folder: Path) -> str:
    """Return the hash of the weights that a folder's model is loaded with, and of what these predict.

    Args:
        folder: of a run, or of one of its checkpoints.
    """
    manifest = checkpoints.manifest_of(folder)
    label = next((f"-{average.label}" for average in run_from(manifest["run"], folder).ema), "")
    name = f"{manifest['role']}{label}.safetensors"
    hashes = [about["sha256"] for about in checkpoints.files_of(manifest, name).values()]
    if not hashes:
        raise UserError(f"{folder} lacks {name}")
    meaning = {key: manifest["run"][key] for key in ("path", "parameterisation")}
    return digest({"weights": hashes[0] if len(hashes) == 1 else hashes, **meaning})


def network_hash(net: Any) -> str:
    """Return the hash of a network's weights and buffers, and of its spec if it has one.

    Args:
        net: the network.
    """
    named = ((name, tensor.detach().cpu()) for name, tensor in net.state_dict().items())
    spec = getattr(net, "spec", None)
    about = spec_of(spec, named=False) if dataclasses.is_dataclass(spec) else {}
    return content_hash(digest(about), *itertools.chain.from_iterable(named))


def _of_path(path: Path) -> str:
    if not path.is_dir():
        return _of_file(path)
    files = []
    for folder, folders, names in os.walk(path, followlinks=True):
        whole = "manifest.json" in names
        folders[:] = [] if whole else sorted(name for name in folders if not name.startswith("."))
        names = ["manifest.json"] if whole else [name for name in names if not name.startswith(".")]
        files += [Path(folder, name) for name in sorted(names)]
    return digest([[file.relative_to(path).as_posix(), _of_file(file)] for file in files])


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
