"""Balanced: any objective, with a price on routers that send everything to a few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import DenoiserLike
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.around import AroundObjective
from gen.training.objectives.lib.routing import imbalance, recorded_routers, routers

__all__ = ["Balanced"]


@dataclass(frozen=True)
class Balanced(AroundObjective):
    """`inner` + weight times the imbalance of the routers of the network (gen.training.objectives.lib.routing).

    It is Switch's loss of each sample, the mean over samples and routers: 1 where all are used evenly, and where
    one has all tokens the number to choose from over the number chosen. A mixer mom (gen.models.layers.mixers) routes
    to its memories.

    Attributes:
        inner: an objective of pictures or signals whose first loss trains the role "net".
        weight: of the imbalance; that of mixtures of memories (Du et al. 2025, arXiv 2502.13685).
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, weight="[0, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        if not routers(net):
            raise UserError("Balanced: this network has no router; allowed: one that has, or the objective inside it")
        return super().roles(net, teacher)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        inner = self.inner(roles, batch)
        with recorded_routers(roles["net"].net) as calls:
            role, loss, logs = next(inner)
        tokens = calls[0][0].shape[1]
        uneven = imbalance(calls, torch.zeros(len(batch.x), tokens, dtype=torch.int64, device=batch.x.device)).mean()
        yield role, loss + self.weight * uneven.to(loss), {**logs, "inner": loss.detach(), "imbalance": uneven.detach()}
        yield from inner
