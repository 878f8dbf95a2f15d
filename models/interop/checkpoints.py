"""Public checkpoints as checkpoints of gen: `import_checkpoint("DiT-XL-2-256x256.pt", "dit", out="runs/dit-xl")`.

Nothing is written unless the file's tensors are exactly the network's, by name and shape. What the weights do not show
(the direction of time, the sign of a velocity, the channels that were guided, the scale of latents) comes from their
origin, one file each in gen.models.interop.public and gen.models.interop.text, and goes into the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json, build, find, name_of, names
from gen.models.interop.lib.inferred import Conversion, Origin
from gen.models.interop.weights import Weights, read
from gen.training.resume import versions
from gen.training.run import Run, run_spec

__all__ = ["Imported", "import_checkpoint"]

FOLDER, TEXT = "models.interop.public", "models.interop.text"
ROLE = "net"
STATISTICS = "latents.safetensors"
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Imported:
    """Report of an import.

    Attributes:
        folder: the checkpoint that was written.
        origin: name of the origin.
        weights: tag of the weights, such as "ema".
        run: the model with its conventions.
        matched: number of tensors.
        numbers: number of parameters.
        dropped: tensors that were left out, and why.
        unread: tags of what else was in the file.
        latent: how samples become images.
        notes: remarks of the origin.
    """

    folder: Path
    origin: str
    weights: str
    run: Run
    matched: int
    numbers: int
    dropped: Mapping[str, str]
    unread: tuple[str, ...]
    latent: Json
    notes: tuple[str, ...]


def import_checkpoint(
    path: str | Path,
    origin: Any = None,
    *,
    weights: str | None = None,
    key: str | None = None,
    preset: str | None = None,
    out: str | Path,
) -> Imported:
    """Convert a published checkpoint to a folder that gen.load, gen.distill and `gen sample` read.

    Raises UserError, in one line, for anything that is not as it should be; then nothing is written.

    Args:
        path: file of weights, or folder of the Hugging Face kind.
        origin: a name of `gen list models.interop.public models.interop.text`, or a spec of one; None to recognise it.
        weights: "ema", "model", or None for the average if there is one.
        key: of the state dict to take, such as "ema.0.9999" or "state_dict.net"; None to find it.
        preset: published size that the weights must have, or None.
        out: the new folder.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give a new folder")
    known: dict[str, Origin] = {name: find(name, FOLDER, TEXT)() for name in names(FOLDER, TEXT)}
    given = read(path, weights, key, lambda weights: any(origin.claims(weights) for origin in known.values()))
    chosen: Origin = _recognised(given, path, known) if origin is None else build((FOLDER, TEXT), origin)
    try:
        conversion = chosen.read(given, preset)
    except UserError as error:
        claims = [] if chosen.claims(given) else [name for name, one in known.items() if one.claims(given)]
        raise UserError(f"{path} is of {' or '.join(claims)}: {error}" if claims else str(error)) from None
    tensors, rounded = _convert(conversion)
    name = name_of(type(chosen))
    copied = {name: path.read_bytes() for name, path in conversion.copied.items()}
    files = {f"{ROLE}.safetensors": tensors, **({STATISTICS: conversion.statistics} if conversion.statistics else {})}
    checkpoints.write(out, files, _manifest(conversion, name, given), copied)
    return Imported(
        folder=out,
        origin=name,
        weights=given.chosen,
        run=conversion.run,
        matched=len(tensors),
        numbers=sum(value.numel() for value in conversion.tensors.values()),
        dropped=conversion.dropped,
        unread=given.unread,
        latent=conversion.latent,
        notes=(*conversion.notes, *rounded),
    )


def _recognised(weights: Weights, path: Path, origins: Mapping[str, Origin]) -> Origin:
    """Return the only origin whose names these are; UserError if there are several or none."""
    claims = [name for name, origin in origins.items() if origin.claims(weights)]
    if len(claims) == 1:
        return origins[claims[0]]
    if claims:
        raise UserError(f"{path} may be of {' or '.join(claims)}, whose weights look alike: say which with --from")
    if kind := (weights.config or {}).get("architectures") or (weights.config or {}).get("model_type"):
        kind = ", ".join(map(str, kind)) if isinstance(kind, list) else kind
        raise UserError(f"{path} is of {kind}; known are {', '.join(origins)}")
    first = ", ".join(list(weights.tensors)[:4])
    raise UserError(f"{path} is of no origin known here ({', '.join(origins)}); its names begin with {first}")


def _convert(conversion: Conversion) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the network, and notes; UserError unless names and shapes are exactly its own.

    They are in its own precision or, with keep_dtype and where the file's is half of it, in that.
    """
    with torch.device("meta"):
        wanted = conversion.run.model.build().state_dict()
    missing = [name for name in wanted if name not in conversion.tensors]
    unexpected = [name for name in conversion.tensors if name not in wanted]
    if missing or unexpected:
        lists = {"missing": missing, "unexpected": unexpected}
        said = "; ".join(f"{len(which)} {what}: {_few(which)}" for what, which in lists.items() if which)
        matched = len(wanted) - len(missing)
        raise UserError(f"the weights are not of this {_name(conversion)}: {matched} tensors matched, {said}")
    for name, tensor in conversion.tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"the weights are not of this {_name(conversion)}: {name} is {list(tensor.shape)}, expected "
                f"{list(wanted[name].shape)}"
            )
    kinds = {name: value.dtype for name, value in wanted.items()}
    if conversion.keep_dtype:
        kinds |= {name: tensor.dtype for name, tensor in conversion.tensors.items() if tensor.dtype in HALVES}
    tensors = Converted(conversion.tensors, kinds)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} holds values that are not finite: the file is of a training that failed")
    wide = [name for name, tensor in conversion.tensors.items() if tensor.dtype == torch.float64]
    return tensors, ((f"{len(wide)} tensors rounded from float64 to float32",) if wide else ())


class Converted(Mapping[str, Tensor]):
    """Tensors in another precision, each converted when it is asked for: two models are never in memory.

    Args:
        tensors: by name.
        kinds: dtype of each.
    """

    def __init__(self, tensors: Mapping[str, Tensor], kinds: Mapping[str, torch.dtype]):
        self.tensors, self.kinds = tensors, kinds

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].to(self.kinds[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


def _manifest(conversion: Conversion, name: str, weights: Weights) -> Json:
    """Return the manifest as a training writes it, with what an import cannot know left empty, and the source."""
    model = conversion.run.model
    source = {
        "origin": name,
        "weights": weights.chosen,
        "files": dict(weights.files),
        "dropped": dict(conversion.dropped),
    }
    return {
        "run": run_spec(conversion.run),
        "role": ROLE,
        "step": 0,
        "samples_seen": 0,
        "shape": list(getattr(model, "shape", None) or (model.channels, model.size, model.size)),
        "classes": model.classes,
        "data": None,
        "parent": None,
        "scaler": {},
        "val_loss": None,
        "versions": versions(),
        "latent": {**conversion.latent, **({"file": STATISTICS} if conversion.statistics else {})},
        "source": source,
    }


def _name(conversion: Conversion) -> str:
    return type(conversion.run.model).__name__


def _few(given: list[str]) -> str:
    return ", ".join(given[:4]) + (" ..." if len(given) > 4 else "")
