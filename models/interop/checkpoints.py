"""Public checkpoints as checkpoints of gen: `import_checkpoint("DiT-XL-2-256x256.pt", "dit", out="runs/dit-xl")`.

Nothing is written unless every tensor of the file has found its place, and every place its tensor. What the weights do
not say (the direction of time, the sign of a velocity, the channels that were guided, the scale of latents) comes from
their origin, one file each in gen.models.interop.public and gen.models.interop.text, and goes into the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, find, name_of, names
from gen.models.interop.lib.inferred import Found, Origin
from gen.models.interop.weights import Weights, read
from gen.training.resume import versions
from gen.training.run import Run, run_spec

__all__ = ["Imported", "import_checkpoint"]

FOLDER, TEXT = "models.interop.public", "models.interop.text"
ROLE = "net"


@dataclass(frozen=True, eq=False)
class Imported:
    """What was read and where it is: the origin's name, which weights, and what became of every tensor."""

    folder: Path
    origin: str
    weights: str
    run: Run
    matched: int
    numbers: int
    dropped: Mapping[str, str]
    beside: tuple[str, ...]
    latent: Mapping[str, Any]
    notes: tuple[str, ...]


def import_checkpoint(
    path: str | Path, origin: Any = None, *, weights: str | None = None, preset: str | None = None, out: str | Path
) -> Imported:
    """A published checkpoint as a folder that gen.load, gen.distill and `gen sample` read.

    origin: a name of `gen list models.interop.public models.interop.text`, or a spec of one; None to find it out.
    weights: "ema", "model", or None for the average if there is one. preset: a published size that the weights must
    have. Raises UserError, in one line, for anything that is not as it should be; then nothing is written.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give a new folder")
    given = read(path, weights)
    chosen: Origin = _recognised(given, path) if origin is None else build((FOLDER, TEXT), origin)
    found = chosen.read(given, preset)
    tensors, rounded = _ready(found)
    name = name_of(type(chosen))
    beside = {name: path.read_bytes() for name, path in found.copied.items()}
    checkpoints.write(out, {f"{ROLE}.safetensors": tensors}, _manifest(found, name, given), beside)
    return Imported(
        folder=out,
        origin=name,
        weights=given.chosen,
        run=found.run,
        matched=len(tensors),
        numbers=sum(value.numel() for value in tensors.values()),
        dropped=found.dropped,
        beside=given.beside,
        latent=found.latent,
        notes=(*found.notes, *rounded),
    )


def _recognised(weights: Weights, path: Path) -> Origin:
    """The only origin whose names these are; UserError if there are several or none."""
    origins = {name: find(name, FOLDER, TEXT)() for name in names(FOLDER, TEXT)}
    claims = [name for name, origin in origins.items() if origin.claims(weights)]
    if len(claims) == 1:
        return origins[claims[0]]
    if claims:
        raise UserError(f"{path} may be of {' or '.join(claims)}, whose weights look alike: say which with --from")
    first = ", ".join(list(weights.tensors)[:4])
    raise UserError(f"{path} is of no origin known here ({', '.join(origins)}); its names begin with {first}")


def _ready(found: Found) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the network, in its own precision or, where that is wanted and the file's is narrower, in that;

    UserError unless names and shapes are exactly its own.
    """
    with torch.device("meta"):
        wanted = found.run.model.build().state_dict()
    missing = [name for name in wanted if name not in found.tensors]
    unexpected = [name for name in found.tensors if name not in wanted]
    if missing or unexpected:
        lists = {"missing": missing, "unexpected": unexpected}
        said = "; ".join(f"{len(which)} {what}: {_few(which)}" for what, which in lists.items() if which)
        matched = len(wanted) - len(missing)
        raise UserError(f"the weights are not of this {_name(found)}: {matched} tensors matched, {said}")
    for name, tensor in found.tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"the weights are not of this {_name(found)}: {name} is {list(tensor.shape)}, expected "
                f"{list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} holds values that are not finite: the file is of a training that failed")
    wide = [name for name, tensor in found.tensors.items() if tensor.dtype == torch.float64]
    notes = (f"{len(wide)} tensors rounded from float64 to float32",) if wide else ()
    kinds = {name: value.dtype for name, value in wanted.items()}
    if found.narrow:
        kinds = {name: min(kind, found.tensors[name].dtype, key=lambda d: d.itemsize) for name, kind in kinds.items()}
    return {name: _own(found.tensors[name].to(kind)) for name, kind in kinds.items()}, notes


def _own(tensor: Tensor) -> Tensor:
    """In memory of its own: a file may hold views of one long tensor, which safetensors would refuse."""
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)


def _manifest(found: Found, name: str, weights: Weights) -> dict[str, Any]:
    """As a training writes it, with what it cannot know of an import left empty, and where this came from."""
    model = found.run.model
    source = {"origin": name, "weights": weights.chosen, "files": dict(weights.files), "dropped": dict(found.dropped)}
    return {
        "run": run_spec(found.run),
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
        "latent": dict(found.latent),
        "source": source,
    }


def _name(found: Found) -> str:
    return type(found.run.model).__name__


def _few(given: list[str]) -> str:
    return ", ".join(given[:4]) + (" ..." if len(given) > 4 else "")
