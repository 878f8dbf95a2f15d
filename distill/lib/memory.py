"""A network that remembers what another one was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Earlier"]


class Earlier(nn.Module):
    """A frozen copy of a network, always in evaluation mode, with the number of updates it has seen go by.

    A role of an objective: without trainable parameters it is memory, saved and resumed with the rest.
    """

    updates: Tensor

    def __init__(self, net: nn.Module):
        super().__init__()
        self.inner = copy.deepcopy(net).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], *, s: Any = None, tap: Any = None) -> Tensor:
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.inner.null(cond)  # type: ignore[operator]

    def train(self, mode: bool = True) -> Earlier:
        return super().train(False)

    def take(self, net: nn.Module) -> None:
        """Becomes what `net` is now."""
        own: Any = getattr(net, "module", net)  # under DistributedDataParallel the network is one level down
        self.inner.load_state_dict(own.state_dict())
