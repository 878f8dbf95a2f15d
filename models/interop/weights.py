"""Other people's weight files, read as data: safetensors, or torch files with weights_only=True. No code in them runs.

Their layout is recognised by its tags: a bare state dict; {"model", "ema", "opt"} of a training script; Lightning's
{"state_dict"} with `denoiser.` and `ema_denoiser.`; a folder of the Hugging Face kind, whole or in shards.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json

__all__ = ["State", "Weights", "read", "read_torch"]

State = Mapping[str, Tensor]

AVERAGES = ("ema", "ema_denoiser")  # what trainings call their average
MODELS = ("model", "denoiser")
HEADS = ("diffusion_trainer.",)  # beside the denoiser in a Lightning file
STEMS = ("diffusion_pytorch_model", "model")
PICKLE, TORCH = b"\x80", b"\x80\x02"  # how pickles begin, and how those of torch's old format do
TRUSTED = (
    "reading it could run code, so it was not read; where you trust it, load it with its own project, save its state "
    "dict with safetensors.torch.save_file, and import that"
)


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of a file or folder.

    Attributes:
        tensors: by name, without `module.` and `_orig_mod.`.
        chosen: their tag, such as "ema", or "bare".
        files: sha256 by name of what was read.
        config: config.json beside them, or None.
        folder: where they lie, or None.
        unread: tags of what else was there.
    """

    tensors: State
    chosen: str
    files: Mapping[str, str]
    config: Json | None = None
    folder: Path | None = None
    unread: tuple[str, ...] = field(default=())


def read(path: Path, wanted: str | None = None) -> Weights:
    """Read a file of weights, or a folder of the Hugging Face kind.

    Args:
        path: file or folder; UserError for what is missing, damaged, or could run code.
        wanted: "ema", "model", or None for the average if there is one.
    """
    if wanted not in (None, "ema", "model"):
        raise UserError(f"weights {wanted!r}; allowed: ema, model")
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or a folder that diffusers wrote")
    folder = _transformer(path)
    files = [path] if folder is None else _weight_files(folder)
    tensors, chosen, unread = _choose(_merged(files), wanted, path)
    return Weights(
        tensors=_stripped(tensors, path),
        chosen=chosen,
        files={file.name: _sha256(file) for file in files},
        config=_config(path if folder is None else folder),
        folder=folder or path.parent,
        unread=unread,
    )


def read_torch(path: Path) -> Any:
    """Read a torch file of tensors, numbers, text, and containers of them; UserError for anything else.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        start = file.read(2)
    zipped = zipfile.is_zipfile(path)
    if path.suffix in (".pkl", ".pickle") or (start[:1] == PICKLE and start != TORCH and not zipped):
        raise UserError(f"{path} is a pickle of Python objects: {TRUSTED}")
    try:
        # A Namespace is what training scripts save beside the weights; it holds attributes, and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a foreign file may break anything; whatever it broke, the file is at fault
        text = " ".join(str(error).split())
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        raise UserError(f"{path} names {named[1]}: {TRUSTED}")
    raise UserError(f"{path} is damaged, or no file of weights")


def _merged(files: list[Path]) -> Any:
    """Return the contents of files, all shards as one mapping."""
    contents = [_safetensors(file) if file.suffix == ".safetensors" else read_torch(file) for file in files]
    if len(contents) == 1:
        return contents[0]
    whole: Json = {}
    for file, content in zip(files, contents, strict=True):
        if not isinstance(content, Mapping) or set(content) & set(whole):
            raise UserError(f"{file} is no shard: it holds what another shard holds too, or no tensors by name")
        whole |= content
    return whole


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error})") from None


def _choose(content: object, wanted: str | None, path: Path) -> tuple[State, str, tuple[str, ...]]:
    """Return the state dict, its tag, and the tags of what else is there."""
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds {type(content).__name__}, expected tensors by name")
    if unnamed := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{path} holds tensors by {type(unnamed[0]).__name__}, expected by name")
    inner = content.get("state_dict")
    if isinstance(inner, Mapping):  # Lightning's, or a plain one in a wrapper
        rest = tuple(str(key) for key in content if key != "state_dict")
        state, chosen, more = _choose(inner, wanted, path)
        return state, chosen, (*more, *rest)
    if all(isinstance(value, Tensor) for value in content.values()):
        return _split(content, wanted, path)
    tagged = {key: value for key, value in content.items() if key in AVERAGES + MODELS and _is_state(value)}
    if not tagged:
        raise UserError(f"{path} holds no state dict, but {', '.join(map(str, list(content)[:8]))}")
    chosen = _pick(tagged, wanted, path)
    return tagged[chosen], chosen, tuple(str(key) for key in content if key != chosen)


def _split(state: State, wanted: str | None, path: Path) -> tuple[State, str, tuple[str, ...]]:
    """Return `_choose` of a flat state dict: bare, or a training module's, denoiser and average side by side."""
    parts: dict[str, dict[str, Tensor]] = {}
    for tag in ("ema_denoiser", "denoiser"):
        part = {key[len(tag) + 1 :]: value for key, value in state.items() if key.startswith(f"{tag}.")}
        parts |= {tag: part} if part else {}
    if not parts:
        if wanted:
            raise UserError(f"{path} holds one set of weights and does not say which: leave out --weights {wanted}")
        return state, "bare", ()
    known = tuple(f"{tag}." for tag in parts) + HEADS
    if stray := [key for key in state if not key.startswith(known)]:
        raise UserError(f"{path}: unexpected beside the denoiser: {', '.join(stray[:5])}")
    chosen = _pick(parts, wanted, path)
    return parts[chosen], chosen, tuple(sorted({key.split(".")[0] for key in state} - {chosen}))


def _pick(tagged: Json, wanted: str | None, path: Path) -> str:
    allowed = {"ema": AVERAGES, "model": MODELS, None: AVERAGES + MODELS}[wanted]
    for tag in allowed:
        if tag in tagged:
            return tag
    raise UserError(f"{path} has no {wanted} weights; it has {', '.join(tagged)}")


def _is_state(value: object) -> bool:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return bool(pairs) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs)


def _stripped(state: State, path: Path) -> State:
    """Return a state dict without what DistributedDataParallel and torch.compile put before names."""
    clean: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part != "_orig_mod")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name in clean:
            raise UserError(f"{path}: {key} is there twice once module. and _orig_mod. are taken off")
        clean[name] = value
    return clean


# -- folders -----------------------------------------------------------------------------------------------------------


def _transformer(path: Path) -> Path | None:
    """Return the folder of the transformer's weights, if `path` is a folder; UserError without a config."""
    if not path.is_dir():
        return None
    folder = path / "transformer" if (path / "transformer" / "config.json").exists() else path
    if not (folder / "config.json").exists():
        raise UserError(f"{path} has no config.json, nor transformer/config.json: give a file, or a diffusers folder")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    for stem in STEMS:
        for suffix in (".safetensors", ".bin"):
            if (folder / f"{stem}{suffix}").exists():
                return [folder / f"{stem}{suffix}"]
            if (index := folder / f"{stem}{suffix}.index.json").exists():
                return _shards(index)
    raise UserError(f"{folder} holds no {STEMS[0]}.safetensors or .bin, nor an index of shards")


def _shards(index: Path) -> list[Path]:
    table = read_json(index)
    named = table.get("weight_map") if isinstance(table, Mapping) else None
    if not isinstance(named, Mapping) or not named:
        raise UserError(f"{index} is no index: it has no weight_map")
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {name!r}, which is not in its folder")
    return [index.parent / name for name in names]


def _config(path: Path) -> Json | None:
    """Return config.json of a folder, or beside a file."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.exists():
        return None
    config = read_json(file, constants=True)
    if not isinstance(config, dict):
        raise UserError(f"{file} is no config: it holds {type(config).__name__}")
    return config


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
