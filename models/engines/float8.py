"""Linear layers as products of eight-bit floats, on GPUs that have them, by torchao."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.engines.lib.prepared import Dtype
from gen.models.engines.lib.quantised import Quantised, quantised
from gen.training.low_precision import float8_obstacle

__all__ = ["Float8"]


@dataclass(frozen=True)
class Float8:
    """Weights by output channel and activations by token in e4m3, compiled; in float32 by whole tensors.

    UserError on a GPU below compute capability 8.9 and on a CPU. Of a network the linear layers of its blocks are
    quantised (gen.training.low_precision); a gradient of x is refused.

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
        if (obstacle := float8_obstacle(device)) is not None:
            raise UserError(f"the engine 'float8': {obstacle}; take int8")
        return quantised(net, device, "float8", _config, self.dtype, self.compared, rounds=True)


def _config(torchao: Any, dtype: torch.dtype) -> Any:
    by_row = dtype == torch.bfloat16  # torchao has scales by row for no other dtype
    granularity = torchao.PerRow() if by_row else torchao.PerTensor()
    return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=granularity, set_inductor_config=False)
