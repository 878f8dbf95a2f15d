"""Variants of published networks that ours computes exactly once tensors are added which change nothing."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from gen.models.interop.weights import State

__all__ = ["with_shifts", "with_tables"]

MODULATION = re.compile(r"blocks\.\d+\.adaLN_modulation\.1\.(weight|bias)")


def with_shifts(tensors: State) -> dict[str, Tensor]:
    """Return the tensors with shifts of zero where blocks have none (LightningDiT's wo_shift).

    Args:
        tensors: the file's; a block's modulation has four parts then, scale and gate of attention and of the MLP.
    """
    out = dict(tensors)
    for name, value in tensors.items():
        if MODULATION.fullmatch(name) and f"{name.rpartition('.')[0]}.weight" in tensors:
            width = tensors[f"{name.rpartition('.')[0]}.weight"].shape[1]
            if len(value) == 4 * width:
                scale1, gate1, scale2, gate2 = value.chunk(4)
                zero = torch.zeros_like(gate1)
                out[name] = torch.cat([zero, scale1, gate1, zero, scale2, gate2])
    return out


def with_tables(tensors: State, model: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with tables of positions that change nothing where there are none, and notes of which.

    Args:
        tensors: by our names.
        model: the network's spec.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in model.build().state_dict().items()}
    fill = {"pos_embed": 0.0, "freqs_cos": 1.0, "freqs_sin": 0.0}
    added = {
        name: torch.full(shape, fill[name.rpartition(".")[2]])
        for name, shape in shapes.items()
        if name not in tensors and name.rpartition(".")[2] in fill
    }
    without = sorted({"pos_embed" if name == "pos_embed" else "rotary tables" for name in added})
    return {**tensors, **added}, tuple(f"the network has no {what}: tables that change nothing" for what in without)
