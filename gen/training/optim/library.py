"""Any optimiser of the package pytorch-optimizer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from gen.config.errors import MissingDependency, UserError, nearest
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.training.optim import decouple_weight_decay

__all__ = ["Library"]


@dataclass(frozen=True)
class Library:
    """An optimiser by its name there: {"name": "library", "optimizer": "adan", "options": {"weight_decouple": true}}.

    Weight decay of a group is that of AdamW here, divided by the group's factor on the rate. Refused are those that
    have weights for evaluation of their own (schedule-free ones, SPlus), those that need the loss again (SAM's kind),
    and those that would not resume to the bit. Needs gen-diffusion[optim].

    Attributes:
        optimizer: its name, in any case: adan, adabelief, lamb, diffgrad, adamp, exadam, soap, prodigy, ...
        lr: peak learning rate, which is the optimiser's own: Adan's is some 3 times, LAMB's 10 times that of AdamW.
        weight_decay: of those that have one.
        options: further arguments of its class.
    """

    optimizer: str = "adan"
    lr: float = 1e-3
    weight_decay: float = 0.0
    options: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, lr="(0, 1000]", weight_decay="[0, inf)")
        for name in ("params", "lr", "weight_decay"):
            if name in self.options:
                raise UserError(f"library: options has {name!r}, which is a field beside it or the run's own")

    def __hash__(self) -> int:
        return hash((self.optimizer, self.lr, self.weight_decay, repr(self.options)))

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        owner = _class(self.optimizer)
        takes = inspect.signature(owner).parameters
        if hasattr(owner, "eval"):
            raise UserError(f"library: {self.optimizer} evaluates other weights than it trains, which no run here does")
        if "weight_decay" not in takes and self.weight_decay:
            raise UserError(f"library: {self.optimizer} has no weight decay, and {self.weight_decay} is asked for")
        if unknown := [name for name in self.options if name not in takes]:
            raise UserError(f"library: {self.optimizer} has no option {unknown[0]!r}. {nearest(unknown[0], takes)}")
        groups: Any = parameters
        how: Json = dict(self.options)
        if "weight_decay" in takes:
            groups = decouple_weight_decay(parameters, self.weight_decay)
            how["weight_decay"] = self.weight_decay
        try:
            optim: torch.optim.Optimizer = owner(groups, lr=self.lr, **how)
        except (TypeError, ValueError, NotImplementedError) as error:  # its own refusals
            raise UserError(f"library: {self.optimizer}: {' '.join(str(error).split())}") from error
        return optim


def _class(name: str) -> Any:
    try:
        from pytorch_optimizer import get_supported_optimizers, load_optimizer
    except ImportError as error:
        raise MissingDependency(f"library: {error}; pip install 'gen-diffusion[optim]'") from error
    known = list(get_supported_optimizers())
    if name.lower() not in known:
        raise UserError(f"library: unknown optimizer {name!r}. {nearest(name.lower(), known)}")
    return load_optimizer(name)
