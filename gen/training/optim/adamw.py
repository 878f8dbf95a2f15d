"""AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gen.config.errors import UserError
from gen.training.optim import decoupled

__all__ = ["AdamW"]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); weight_decay 0, DiT's choice, makes it Adam."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"AdamW: lr = {self.lr}; it must be positive")

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        given = decoupled(parameters, self.weight_decay)
        return torch.optim.AdamW(
            given, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, foreach=True
        )
