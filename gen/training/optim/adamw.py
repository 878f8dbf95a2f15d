"""AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.training.optim import decouple_weight_decay

__all__ = ["AdamW"]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); on a GPU one kernel for all.

    Attributes:
        lr: peak learning rate; default DiT's.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: multiplied by lr at each step; 0, DiT's choice, makes it Adam.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, lr="(0, 1000]", betas="[0, 1)", eps="(0, inf)", weight_decay="[0, inf)")

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        groups = decouple_weight_decay(parameters, self.weight_decay)
        given: list[Json] = [{**group, "params": _listed(group["params"])} for group in groups]
        fused = all(p.is_cuda for group in given for p in group["params"])
        how = {"fused": True} if fused else {"foreach": True}
        return torch.optim.AdamW(
            given, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, **how
        )


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
