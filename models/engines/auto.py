"""The engine that suits the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gen.config.fields import check_fields
from gen.kernels.linear import unpackable
from gen.models.engines.compiled import Compiled
from gen.models.engines.fused import Fused
from gen.models.engines.lib.prepared import Dtype, choose_dtype
from gen.models.engines.packed import Packed

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto:
    """`packed` on a CPU with oneDNN, `compiled` on a GPU, `fused` elsewhere; the result says which, and in what dtype.

    Attributes:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32.
    """

    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        check_fields(self)

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
        """Return a copy of the network, ready on the device."""
        if torch.device(device).type == "cuda":
            return Compiled(self.dtype).prepare(net, device)
        dtype, _ = choose_dtype(self.dtype, device, net)
        packable = unpackable(torch.empty(1, 1, dtype=dtype, device=device)) is None
        return (Packed if packable else Fused)(self.dtype).prepare(net, device)
