"""Trajectory: as dParallel, but what is masked is what the teacher had not yet decided (d3LLM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.distillers.lib.certainty import Certain, window
from gen.samplers.block_schedules.multi import Multi
from gen.samplers.decoding_policies.entropy import Entropy
from gen.text.decoding import Decoding
from gen.training.objectives import Batch, Roles
from gen.training.objectives.lib.masked import Tokens
from gen.training.run import Run

__all__ = ["Trajectory"]


@dataclass(frozen=True)
class Trajectory(Certain):
    """The loss of gen.distillers.dparallel on states of the teacher's own decoding (Qian et al. 2026, arXiv
    2601.07568).

    The first view masks the share `ratio` of a block that the teacher committed last, the second the rest of it. Over
    the first `over` updates the ratio rises from ratio[0] to ratio[1], and the block grows through `blocks`, each for
    an equal part; then both stay. The student is decoded by the policy `entropy` in `multi` blocks of the last length.
    Other fields: see gen.distillers.dparallel.

    Measured as there (5 minutes; --objective.blocks "[4,8]" --objective.over 1200 --steps 1500): one token a step 100
    percent of the answers right, .69 tokens per forward; threshold .97 99.1, 2.71; .9 96.3, 3.24; entropy .1 99.3,
    2.56; .5, as the student wants it, 93.0, 3.62. On answers of at most 8 tokens, whose order tells little, that is no
    more than dParallel has.
    """

    blocks: tuple[int, ...] = (16, 24, 32)
    ratio: tuple[float, float] = (0.0, 0.8)
    over: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if not self.blocks or min(self.blocks) < 1 or not all(0 <= r <= 1 for r in self.ratio) or self.over < 1:
            raise UserError(
                f"Trajectory: blocks = {self.blocks}, ratio = {self.ratio}, over = {self.over}; at least one block "
                "length, all at least 1, ratios in [0, 1] and over >= 1"
            )

    def decoding(self, run: Run) -> Decoding:
        assert isinstance(run.sampler, Decoding)
        return replace(run.sampler, policy=Entropy(), block_schedule=Multi(length=self.blocks[-1]))

    def stage(self, step: int) -> tuple[int, float]:
        """The length of a block and the ratio after so many updates."""
        done = min(step / self.over, 1.0)
        low, high = self.ratio
        return self.blocks[min(int(done * len(self.blocks)), len(self.blocks) - 1)], low + (high - low) * done

    def masks(self, net: Any, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        if "commit_step" not in batch.cond:
            raise UserError("Trajectory needs answers with the step of each token: this data has none")
        length, ratio = self.stage(batch.step)
        inside = window(net, tokens, length, batch.noise.uniform("block"))
        return inside, last(batch.cond["commit_step"], inside, ratio)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss at the end of the curriculum, on fixed blocks."""
        return super().validate(roles, replace(batch, step=self.over))


def last(when: Tensor, inside: Tensor, ratio: float) -> Tensor:
    """The share `ratio` of the places inside [B, L] that were committed last, by when [B, L]; later places first among
    equals. The number of places is rounded."""
    order = torch.where(inside, when, -torch.inf).argsort(dim=1, stable=True)  # those outside come first
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(when.shape[1], device=when.device).expand_as(order))
    count = (inside.sum(1, keepdim=True) * ratio).round()
    return inside & (when.shape[1] - 1 - rank < count)
