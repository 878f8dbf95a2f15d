"""Weights laid out once for the processor, by oneDNN."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gen.config.errors import UserError
from gen.kernels.linear import unpackable
from gen.models.engines.lib.prepared import Dtype, Prepared, chosen
from gen.models.layers.packed import pack_linears
from gen.models.text import TextNet

__all__ = ["Packed"]


@dataclass(frozen=True)
class Packed:
    """For the CPU: linear layers in oneDNN's own layout with their GELU, blocks fused. Needs no compiler.

    Of a text model only the layers' layout changes.

    dtype: "auto" is bfloat16 where the processor multiplies it fast, float32 elsewhere. UserError on other devices and
    where oneDNN cannot hold the weights.
    """

    dtype: Dtype = "auto"

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
        dtype, why = chosen(self.dtype, device)
        reason = unpackable(torch.empty(1, 1, dtype=dtype, device=device))
        if reason is not None:
            others = "for text there is no other engine" if isinstance(net, TextNet) else "use 'fused' or 'compiled'"
            raise UserError(f"the engine 'packed': {reason}; {others}")
        if isinstance(net, TextNet):
            made: Any = copy.deepcopy(net).eval().requires_grad_(False).to(dtype)
            made.about = f"packed ({why}), {str(dtype).removeprefix('torch.')}"
        else:
            made = Prepared(net, dtype, f"packed ({why})")
        pack_linears(made)
        return made
