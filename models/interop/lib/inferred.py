"""Shared parts of origins: reading sizes off shapes, and the check of tables that are computed anew."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.path import Flow, NoisePath
from gen.models.interop.weights import State, Weights
from gen.models.layers.embed import grid_embedding
from gen.training.run import Run

__all__ = [
    "LAST_STEP",
    "SDE",
    "SD_VAE",
    "Conversion",
    "Origin",
    "Reader",
    "build_spec",
    "cfg_spec",
    "check_pos_embed",
    "check_table",
    "published_heads",
]

# An average keeps even a constant only up to rounding: e <- 0.9999 e + 0.0001 p in float32 ends 1.6e-4 away from p.
# Another layout of positions differs by 1 and more.
DRIFT = 5e-3

# Of SiT's descendants: equal steps to t = 0.04, and one to data. So many steps are so many evaluations.
LAST_STEP: Json = {"name": "linear", "last": 0.04}
SDE: Json = {"solver": {"name": "sit_sde", "last": "mean"}, "grid": LAST_STEP, "steps": 250}

# decode(x / scale + shift)
SD_VAE: Json = {"autoencoder": "stabilityai/sd-vae-ft-ema", "scale": 0.18215, "shift": 0.0}


@dataclass(frozen=True, eq=False)
class Conversion:
    """Foreign weights as a model of gen.

    Attributes:
        run: the model and how it is called.
        tensors: by our names.
        latent: how samples become images, decode(x / scale + shift), as the manifest will say it; image_range is that
            of the images which the autoencoder takes and gives, [-1, 1] where it is missing.
        statistics: scale and shift of every position, [C, H, W], which are then a file of the checkpoint.
        dropped: tensors of theirs that are left out, and why.
        notes: for the report.
        copied: files that go with the weights, by the name they get.
        keep_dtype: weights stay in the precision of the file.
    """

    run: Run
    tensors: State
    latent: Json
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    copied: Mapping[str, Path] = field(default_factory=dict)
    keep_dtype: bool = False
    statistics: State = field(default_factory=dict)


class Origin(Protocol):
    """A format of published weights, a frozen dataclass; see gen.models.interop.public."""

    def claims(self, weights: Weights) -> bool:
        """Return whether names and config are of this origin.

        Args:
            weights: the file's.
        """
        ...

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        """Convert weights; UserError where they are not of this origin.

        Args:
            weights: the file's.
            preset: published size that they must have, or None.
        """
        ...


class Reader:
    """Tensors by name, with an error in one line where a name or a shape is not as expected."""

    def __init__(self, tensors: State, origin: str):
        self.tensors, self.origin = tensors, origin

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Return the shape of a tensor of so many dimensions."""
        if name not in self.tensors:
            have = ", ".join(list(self.tensors)[:4])
            raise UserError(f"these are no weights of {self.origin}: no {name}; they begin with {have}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims:
            raise UserError(f"these are no weights of {self.origin}: {name} is {list(shape)}, expected {dims} sizes")
        return shape

    def count(self, stack: str) -> int:
        """Return how many blocks.0, blocks.1, ... there are; UserError if one is missing between."""
        numbers = {int(m[1]) for name in self.tensors if (m := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))}
        if not numbers or numbers != set(range(len(numbers))):
            what = f"{stack}.N are {sorted(numbers)[:8]}" if numbers else f"no {stack}.0"
            raise UserError(f"these are no whole weights of {self.origin}: {what}")
        return len(numbers)

    def ratio(self, whole: int, part: int, name: str) -> int:
        """Return whole / part, which must be a whole number; name is that of the tensor."""
        if whole % part:
            raise UserError(f"these are no weights of {self.origin}: {name}: {whole} is no multiple of {part}")
        return whole // part

    def side(self, positions: int) -> int:
        """Return the side of a square of so many positions."""
        side = math.isqrt(positions)
        if side * side != positions:
            raise UserError(f"these are no weights of {self.origin}: {positions} positions are no square")
        return side

    def classes(self, table: str = "y_embedder.embedding_table.weight") -> int:
        """Return the number of labels of a table that has a last row for "no class"; 0 without the table."""
        return self.shape(table, 2)[0] - 1 if table in self.tensors else 0


def published_heads(presets: Mapping[str, Json], given: int | None, **sizes: object) -> int:
    """Return the number of heads, which shapes do not show; UserError where no published model has these sizes.

    Args:
        presets: fields by preset of the family.
        given: the number, if the user says it.
        **sizes: fields that the weights show.
    """
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


def build_spec(owner: Any, preset: str | None, fields: Json, **kept: object) -> Any:
    """Return the spec with these fields; UserError if a preset is named that has other sizes.

    Args:
        owner: the family.
        preset: name of a published size, or None.
        fields: sizes that the weights show.
        **kept: fields that are conventions of the origin, whatever the preset says.
    """
    if preset is not None:
        published = owner.preset(preset)
        sizes = [key for key in fields if key in ("width", "depth", "patch", "heads", "mlp_ratio") or "depth" in key]
        differing = [f"{key} {fields[key]}" for key in sizes if getattr(published, key, fields[key]) != fields[key]]
        if differing:
            raise UserError(f"the weights are not of preset {preset!r}: they have {', '.join(differing)}")
    return owner(**fields, **kept)


def check_table(name: str, theirs: Tensor, ours: Tensor) -> float:
    """Return the largest difference of two tables that should be one; UserError where it is more than rounding.

    Args:
        name: of the table.
        theirs, ours: the tables.
    """
    if theirs.shape != ours.shape:
        raise UserError(f"{name} is {list(theirs.shape)}, but here it is {list(ours.shape)}")
    worst = float((theirs.double() - ours.double()).abs().max())
    if not worst <= DRIFT:
        raise UserError(
            f"{name} differs from this model's by up to {worst:.3g} (rounding explains {DRIFT:g}): another model"
        )
    return worst


def check_pos_embed(reader: Reader, width: int, name: str = "pos_embed", front: int = 0) -> tuple[int, str]:
    """Return the side of the grid of positions, and a note of how near its table is to ours.

    The table is part of the weights, so that any is right: a learned one, or one that was interpolated.

    Args:
        reader: the tensors.
        width: columns of the table.
        name: of the table.
        front: number of rows of zeros that come first.
    """
    side = reader.side(reader.shape(name, 3)[1] - front)
    table = torch.cat([torch.zeros(front, width), grid_embedding(width, side)])[None]
    theirs = reader.tensors[name].float()
    if theirs.shape != table.shape:
        raise UserError(f"{name} is {list(theirs.shape)}, expected {list(table.shape)}")
    worst = float((theirs - table).abs().max())
    kind = f"up to {worst:.2g} from its formula" + ("" if worst <= DRIFT else ": learned, or interpolated")
    return side, f"{name} kept as it is there, {kind}"


def cfg_spec(
    model: Any,
    scale: float,
    channels: int | None = None,
    until: float | None = None,
    path: NoisePath | None = None,
) -> Json | None:
    """Return classifier-free guidance as a spec; None for a model without classes, or without "no class".

    Args:
        model: the model's spec.
        scale: of the guide.
        channels: number of the first channels that are guided, None for all.
        until: the last time t that is guided, on the path; None for all.
        path: the model's; None for flow.
    """
    if not model.classes or not getattr(model, "null_class", True):
        return None
    few = None if channels is None or model.channels <= channels else channels
    interval = None if until is None else [0.0, _level(path or Flow(), until)]
    return {"name": "cfg", "scale": scale, "channels": few, "interval": interval}


def _level(path: NoisePath, t: float) -> float:
    """Return sigma / alpha at a time, the unit of a guide's interval.

    Args:
        path: the path.
        t: the time.
    """
    time = torch.tensor(t, dtype=torch.float64)
    return float(path.sigma(time) / path.alpha(time))
