"""Optimisers: one file per optimiser, a frozen dataclass with build(groups) -> torch.optim.Optimizer.

`groups` are torch's parameter groups; the trainer sets each one's lr to the run's times the group's `scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["decoupled", "groups", "optimisers"]


def optimisers(optim: Any, nets: Mapping[str, nn.Module], rates: Mapping[str, float]) -> dict[str, Any]:
    """One for each role that has something to train; rates: factors on the learning rate, by role."""
    found = {role: groups(net, rates.get(role, 1.0)) for role, net in nets.items()}
    return {role: optim.build(given) for role, given in found.items() if given}


def groups(net: nn.Module, rate: float = 1.0) -> list[dict[str, Any]]:
    """The trained parameters by learning rate: `scale` times the run's, `rate` times what net.lr_scales() names."""
    scales: dict[str, float] = getattr(net, "lr_scales", dict)()
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        found.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": rate * scale} for scale, parameters in found.items()]


def decoupled(parameters: Iterable[Any], weight_decay: float) -> list[Any]:
    """The groups with their weight decay: over `scale`, so that lr x weight decay is the same for all of them.

    So muP's AdamW has it (microsoft/mup, MuAdamW): where the rate shrinks with the width, the decay grows.
    """
    return [
        {**given, "weight_decay": weight_decay / given.get("scale", 1.0)} if isinstance(given, dict) else given
        for given in parameters
    ]
