"""Weights laid out once for the processor, by oneDNN."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.kernels.linear import unpackable
from gen.models.engines.lib.prepared import Dtype, Prepared, choose_dtype, dtype_name
from gen.models.layers.packed import pack_linears
from gen.models.text import TextNet

__all__ = ["Packed"]


@dataclass(frozen=True)
class Packed:
    """For the CPU: linear layers in oneDNN's own layout with their GELU, blocks fused. Needs no compiler.

    Of a text model only the layers' layout changes. UserError on other devices and where oneDNN cannot hold the
    weights.

    Attributes:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32.
    """

    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        check_fields(self)

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
        """Return a copy of the network, ready on the device."""
        dtype, why = choose_dtype(self.dtype, device, net)
        reason = unpackable(torch.empty(1, 1, dtype=dtype, device=device))
        if reason is not None:
            others = "for text there is no other engine" if isinstance(net, TextNet) else "use 'fused' or 'compiled'"
            raise UserError(f"the engine 'packed': {reason}; {others}")
        prepared: Any
        if isinstance(net, TextNet):
            prepared = copy.deepcopy(net).eval().requires_grad_(False).to(dtype)
            prepared.about = f"packed ({why}), {dtype_name(dtype)}"
        else:
            prepared = Prepared(net, dtype, f"packed ({why})")
        pack_linears(prepared)
        return prepared
