"""The modulations of all blocks as one product, which needs the condition but no token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Modulations"]


class Modulations(nn.Module):
    """All adaLN modules of a network at once: their common condition c [B, width] -> [B, total], side by side.

    It is built from a network (gen.models.layers.patch.PatchNet), each of whose adaLN modules is replaced by a view of
    its part. Then the network takes the whole instead of the condition, from cond["modulation"].
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        owners: list[Any] = [module for module in net.modules() if hasattr(module, "adaLN_modulation")]
        layers: list[nn.Linear] = [owner.adaLN_modulation[-1] for owner in owners]
        self.silu = isinstance(owners[0].adaLN_modulation[0], nn.SiLU)
        self.product = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
        self.product.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        self.product.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        start = 0
        for owner, layer in zip(owners, layers, strict=True):
            owner.adaLN_modulation = ModulationPart(start, start + layer.out_features)
            start += layer.out_features

    def forward(self, c: Tensor) -> Tensor:
        return self.product(nn.functional.silu(c) if self.silu else c)


class ModulationPart(nn.Module):
    """The columns of one module in all modulations [B, total]."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, c: Tensor) -> Tensor:
        return c[:, self.start : self.stop]
