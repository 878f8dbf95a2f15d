"""What suits the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gen.kernels.linear import unpackable
from gen.models.engines.compiled import Compiled
from gen.models.engines.fused import Fused
from gen.models.engines.lib.prepared import Dtype, chosen
from gen.models.engines.packed import Packed

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto:
    """`packed` on a CPU with oneDNN, `compiled` on a GPU, `fused` elsewhere; the result says which, and in what dtype.

    dtype: "auto" is bfloat16 where the processor multiplies it fast, float32 elsewhere.
    """

    dtype: Dtype = "auto"

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
        if torch.device(device).type == "cuda":
            return Compiled(self.dtype).prepare(net, device)
        dtype, _ = chosen(self.dtype, device)
        packable = unpackable(torch.empty(1, 1, dtype=dtype, device=device)) is None
        return (Packed if packable else Fused)(self.dtype).prepare(net, device)
