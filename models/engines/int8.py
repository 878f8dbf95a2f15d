"""Linear layers as products of eight-bit integers, weights and activations, by torchao."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gen.config.fields import check_fields
from gen.models.engines.lib.prepared import Dtype
from gen.models.engines.lib.quantised import Quantised, quantised

__all__ = ["Int8"]


@dataclass(frozen=True)
class Int8:
    """Weights by output channel and activations by token, each rounded to 255 levels; all else as `fused` has it.

    Of a network the linear layers of its blocks are quantised (gen.training.low_precision); a gradient of x is refused.
    On a GPU it is compiled, and a product needs more than 16 tokens in a batch.

    Attributes:
        dtype: of all else: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it,
            else float32.
        compared: how many evaluations, the 1st, 2nd, 4th, ..., are computed by the plain network too, a copy of which
            is held until then; the result says how far they are. 0 for none.
    """

    dtype: Dtype = "auto"
    compared: int = 6

    def __post_init__(self) -> None:
        check_fields(self, compared="[0, 64]")

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Quantised:
        """Return a copy of the network, ready on the device."""
        return quantised(net, device, "int8", _config, self.dtype, self.compared, rounds=True)


def _config(torchao: Any, dtype: torch.dtype) -> Any:
    return torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
