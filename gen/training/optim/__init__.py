"""Optimisers: one file each; library has those of pytorch-optimizer. Your own is "my_package.module:Class"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.net import members
from gen.training.optimiser_state import check_resumable

__all__ = ["Optimiser", "build_optimisers", "decouple_weight_decay", "parameter_groups", "set_rates"]


class Optimiser(Protocol):
    """A plug-in of this folder: a frozen dataclass of hyperparameters that builds a torch optimiser."""

    @property
    def lr(self) -> float:
        """Peak learning rate; before each step a group's "lr" is set to lr x the schedule's factor x its "scale"."""
        ...

    def build(self, parameters: ParamsT, /) -> torch.optim.Optimizer:
        """Build the optimiser of one role.

        Args:
            parameters: torch's parameter groups {"params", "scale"}, as of `parameter_groups`, or bare parameters. Its
                state, all of it in `state` and `param_groups`, must be tensors, numbers, text and containers of such,
                which checkpoints hold; an optimiser that would not resume to the bit is refused.
        """
        ...


def build_optimisers(
    optim: Optimiser, nets: Mapping[str, nn.Module], rates: Mapping[str, float]
) -> dict[str, torch.optim.Optimizer]:
    """Build one optimiser for each role that has something to train.

    Args:
        optim: the plug-in.
        nets: networks by role.
        rates: factors on the learning rate by role; 1 for those left out.

    Raises:
        UserError: for an optimiser that cannot be saved and resumed to the bit.
    """
    groups = {role: parameter_groups(net, rates.get(role, 1.0)) for role, net in nets.items()}
    for given in filter(None, groups.values()):
        try:
            check_resumable(optim.build, given, optim.lr)
        except UserError as error:
            raise UserError(f"optim: {type(optim).__name__} cannot be resumed: {error}") from error
    return {role: optim.build(given) for role, given in groups.items() if given}


def parameter_groups(net: nn.Module, rate: float = 1.0) -> list[Json]:
    """Return the trained parameters grouped by learning rate, as {"params": [...], "scale": factor}.

    Args:
        net: its optional lr_scales() names parameters with a factor of their own (muP), see gen.diffusion.net; adapters
            have none.
        rate: a factor on all of them.
    """
    scales = {} if getattr(net, "adapted", False) else members(net).lr_scales()
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": rate * scale} for scale, parameters in groups.items()]


def set_rates(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group of parameters, times the factor of its own.

    Args:
        optimiser: of `build_optimisers`.
        lr: the rate at this step.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


def decouple_weight_decay(parameters: ParamsT, weight_decay: float) -> list[Json]:
    """Divide each group's weight decay by its `scale`, so that lr x weight decay is the same for all groups.

    This is muP's AdamW (microsoft/mup, MuAdamW): where the rate shrinks with the width, the decay grows.

    Args:
        parameters: parameter groups or bare parameters.
        weight_decay: that of a group with scale 1.
    """
    groups: list[Json] = [given if isinstance(given, dict) else {"params": given} for given in parameters]
    return [{**group, "weight_decay": weight_decay / group.get("scale", 1.0)} for group in groups]
