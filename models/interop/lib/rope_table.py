"""Rotary tables, which LightningDiT and RAE keep in their weights: they show how wide a head is."""

from __future__ import annotations

from torch import Tensor

from gen.config.errors import UserError
from gen.models.interop.lib.inferred import Reader, check_table
from gen.models.layers.rope import Rope, axial_angles

__all__ = ["check_rope", "head_width"]


def head_width(reader: Reader, name: str) -> int:
    """Return the channels of one head.

    Args:
        reader: the tensors.
        name: of the table's module.
    """
    return reader.shape(f"{name}.freqs_cos", 2)[1]


def check_rope(reader: Reader, name: str, dim: int, side: int) -> str:
    """Return a note of how near the tables are to ours; UserError for other tables.

    Args:
        reader: the tensors.
        name: of the table's module.
        dim: channels of one head.
        side: of the grid of positions.
    """
    if dim % 4:
        raise UserError(f"{name}.freqs_cos has {dim} columns, expected a multiple of 4")
    ours: dict[str, Tensor] = Rope(axial_angles(dim, side)).state_dict()
    for table in ours:
        reader.shape(f"{name}.{table}", 2)
    worst = max(
        check_table(f"{name}.{table}", reader.tensors[f"{name}.{table}"], value) for table, value in ours.items()
    )
    return f"{name} kept as it is there, up to {worst:.2g} from its formula"
