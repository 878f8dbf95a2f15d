"""Tables of turns, which LightningDiT and RAE keep in their weights: they tell how wide a head is."""

from __future__ import annotations

from torch import Tensor

from gen.config.errors import UserError
from gen.models.interop.lib.inferred import Reader, compare
from gen.models.layers.rope import Rope, axial_angles

__all__ = ["head_width", "rope"]


def head_width(reader: Reader, name: str) -> int:
    """The channels of one head."""
    return reader.shape(f"{name}.freqs_cos", 2)[1]


def rope(reader: Reader, name: str, dim: int, side: int) -> str:
    """A note of how near the tables are to ours; UserError where they are others."""
    if dim % 4:
        raise UserError(f"{name}.freqs_cos has {dim} columns, expected a multiple of 4")
    ours: dict[str, Tensor] = Rope(axial_angles(dim, side)).state_dict()
    for table in ours:
        reader.shape(f"{name}.{table}", 2)
    worst = max(compare(f"{name}.{table}", reader.tensors[f"{name}.{table}"], value) for table, value in ours.items())
    return f"{name} kept as it is there, up to {worst:.2g} from its formula"
