"""Optimisers: one file per optimiser, a frozen dataclass with build(groups) -> torch.optim.Optimizer.

`groups` are torch's parameter groups; the trainer sets each one's lr to the run's times the group's `scale`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["groups"]


def groups(net: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters by learning rate: `scale` times the run's, 1 unless net.lr_scales() names another."""
    scales: dict[str, float] = getattr(net, "lr_scales", dict)()
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        found.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in found.items()]
