"""Muon: momentum whose matrices are orthogonalised, by torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from gen.config.errors import MissingDependency
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.training.optim import decouple_weight_decay

__all__ = ["Muon", "Together"]


@dataclass(frozen=True)
class Muon:
    """torch.optim.Muon for matrices (Jordan et al. 2024), AdamW for all other parameters.

    An update of a matrix is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one rate and one
    weight decay serve both. Tables of labels are matrices too. Needs torch 2.9.

    Attributes:
        lr: peak learning rate, as of AdamW.
        momentum: decay of the mean gradient.
        nesterov: whether the mean looks ahead.
        steps: iterations of Newton and Schulz.
        betas, eps: of AdamW.
        weight_decay: decoupled, of all.
    """

    lr: float = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        decays = {"momentum": "[0, 1)", "betas": "[0, 1)", "weight_decay": "[0, inf)"}
        check_fields(self, lr="(0, 1000]", steps="[1, 100)", eps="(0, inf)", **decays)

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        if not hasattr(torch.optim, "Muon"):
            raise MissingDependency(f"muon: torch {torch.__version__} has no Muon; it needs torch 2.9")
        matrices, others = split(decouple_weight_decay(parameters, self.weight_decay), lambda p: p.ndim == 2)
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            how: Any = {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.steps}
            parts.append(torch.optim.Muon(matrices, self.lr, adjust_lr_fn="match_rms_adamw", **how))
        if others:
            parts.append(torch.optim.AdamW(others, self.lr, self.betas, self.eps, foreach=True))
        return Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimisers as one, which has their groups and their states.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    def step(self, closure: Any = None) -> Any:
        """Let each of them make its step."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = iter(self.param_groups)  # others than those of the start, if a state was loaded
        for part in self.parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]
            part.step()
        return loss


def split(groups: list[Json], first: Any) -> tuple[list[Json], list[Json]]:
    """Return parameter groups of the parameters for which `first` holds, and of the others; none is empty.

    Args:
        groups: parameter groups.
        first: of a parameter.
    """
    both: tuple[list[Json], list[Json]] = ([], [])
    for group in groups:
        for side, part in enumerate(both):
            if chosen := [p for p in group["params"] if bool(first(p)) == (side == 0)]:
                part.append({**group, "params": chosen})
    return both
