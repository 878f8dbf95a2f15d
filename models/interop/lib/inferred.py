"""What origins share: reading sizes off shapes, and the check of what is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.models.interop.weights import State, Weights
from gen.models.layers.embed import grid_embedding
from gen.training.run import Run

__all__ = ["SD_VAE", "Found", "Origin", "Reader", "compare", "guide", "heads_of", "pos_embed", "sized"]

# An average keeps even a constant only up to rounding: e <- 0.9999 e + 0.0001 p in float32 ends 1.6e-4 away from p.
# Another layout of places differs by 1 and more.
DRIFT = 5e-3

# decode(x / scale + shift)
SD_VAE: Mapping[str, Any] = {"autoencoder": "stabilityai/sd-vae-ft-ema", "scale": 0.18215, "shift": 0.0}


@dataclass(frozen=True, eq=False)
class Found:
    """run: the model and how it is called; tensors: under our names; latent: how its samples become images, as the

    manifest will say it: decode(x / scale + shift); dropped: tensors of theirs left out, and why. copied: files that go
    with the weights, by the name they get. narrow: weights stay in the precision of the file.
    """

    run: Run
    tensors: State
    latent: Mapping[str, Any]
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    copied: Mapping[str, Path] = field(default_factory=dict)
    narrow: bool = False


class Origin(Protocol):
    """See gen.models.interop.public."""

    def claims(self, weights: Weights) -> bool: ...

    def read(self, weights: Weights, preset: str | None) -> Found: ...


class Reader:
    """Tensors by name, with an error in one line where a name or a shape is not as expected."""

    def __init__(self, tensors: State, origin: str):
        self.tensors, self.origin = tensors, origin

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        if name not in self.tensors:
            have = ", ".join(list(self.tensors)[:4])
            raise UserError(f"these are no weights of {self.origin}: no {name}; they begin with {have}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims:
            raise UserError(f"these are no weights of {self.origin}: {name} is {list(shape)}, expected {dims} sizes")
        return shape

    def count(self, stack: str) -> int:
        """How many blocks.0, blocks.1, ... there are; UserError if one is missing between."""
        found = {int(m[1]) for name in self.tensors if (m := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))}
        if not found or found != set(range(len(found))):
            what = f"{stack}.N are {sorted(found)[:8]}" if found else f"no {stack}.0"
            raise UserError(f"these are no whole weights of {self.origin}: {what}")
        return len(found)

    def ratio(self, whole: int, part: int, name: str) -> int:
        if whole % part:
            raise UserError(f"these are no weights of {self.origin}: {name}: {whole} is no multiple of {part}")
        return whole // part

    def side(self, places: int) -> int:
        side = math.isqrt(places)
        if side * side != places:
            raise UserError(f"these are no weights of {self.origin}: {places} places are no square")
        return side


def heads_of(presets: Mapping[str, Mapping[str, Any]], given: int | None, **sizes: Any) -> int:
    """Heads, which shapes do not tell: as given, or those of the published model of these sizes."""
    if given is not None:
        return given
    known = {row["heads"] for row in presets.values() if sizes.items() <= row.items()}
    if len(known) == 1:
        return int(known.pop())
    what = ", ".join(f"{key} {value}" for key, value in sizes.items())
    raise UserError(
        f"the number of heads cannot be read off the weights, and no published model has {what}: "
        'say it, as in --from \'{"name": "sit", "heads": 8}\', or name a --preset'
    )


def sized(owner: Any, preset: str | None, fields: Mapping[str, Any], **kept: Any) -> Any:
    """The spec with these fields; if a preset is named, it must agree with every size it names.

    kept: fields that are conventions of the origin, whatever the preset says.
    """
    if preset is not None:
        made = owner.preset(preset)
        sizes = [key for key in fields if key in ("width", "depth", "patch", "heads", "mlp_ratio") or "depth" in key]
        differing = [f"{key} {fields[key]}" for key in sizes if getattr(made, key, fields[key]) != fields[key]]
        if differing:
            raise UserError(f"the weights are not of preset {preset!r}: they have {', '.join(differing)}")
    return owner(**fields, **kept)


def compare(name: str, theirs: Tensor, ours: Tensor) -> float:
    """The largest difference of two tables that should be one; UserError where it is more than rounding."""
    if theirs.shape != ours.shape:
        raise UserError(f"{name} is {list(theirs.shape)}, but here it is {list(ours.shape)}")
    worst = float((theirs.double() - ours.double()).abs().max())
    if not worst <= DRIFT:
        raise UserError(
            f"{name} differs from this model's by up to {worst:.3g} (rounding explains {DRIFT:g}): another model"
        )
    return worst


def pos_embed(reader: Reader, width: int, name: str = "pos_embed", front: int = 0) -> tuple[int, str]:
    """The side of the grid of places, once the table is found to be ours; and a note of how nearly it is.

    front: so many rows of zeros come first.
    """
    side = reader.side(reader.shape(name, 3)[1] - front)
    table = torch.cat([torch.zeros(front, width), grid_embedding(width, side)])
    worst = compare(name, reader.tensors[name], table[None])
    return side, f"{name} kept as it is there, up to {worst:.2g} from its formula"


def guide(model: Any, scale: float, channels: int | None = None, interval: Iterable[float] | None = None) -> Any:
    """Classifier-free guidance as a spec, on so many of the first channels; None for a model without classes.

    interval: of sigma / alpha; on flow, t up to 0.7 are the levels up to 0.7 / 0.3.
    """
    if not model.classes:
        return None
    few = None if channels is None or model.channels <= channels else channels
    return {"name": "cfg", "scale": scale, "channels": few, "interval": None if interval is None else list(interval)}
