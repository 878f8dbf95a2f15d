"""Norms, modulations, gates and sums in the fewest passes over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gen.config.fields import check_fields
from gen.models.engines.lib.prepared import Dtype, Prepared, choose_dtype

__all__ = ["Fused"]


@dataclass(frozen=True)
class Fused:
    """A copy in one dtype whose blocks use the fused operations of gen.kernels; on a GPU these are Triton's.

    Attributes:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32.
    """

    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        check_fields(self)

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Prepared:
        """Return a copy of the network, ready on the device."""
        dtype, why = choose_dtype(self.dtype, device, net)
        return Prepared(net, dtype, f"fused ({why})").to(device)
