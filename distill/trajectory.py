"""Trajectory: dParallel's loss with masks on the tokens that the teacher committed last (d3LLM)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.distillers.lib.certainty import CertaintyDistillation, random_block
from gen.samplers.block_schedules.multi import Multi
from gen.samplers.decoding_policies.entropy import Entropy
from gen.text.decoding import Decoding
from gen.training.objectives import Batch, Roles
from gen.training.objectives.lib.masked import TokenBatch

__all__ = ["Trajectory"]


@dataclass(frozen=True)
class Trajectory(CertaintyDistillation):
    """Pseudo-trajectory distillation of a text model, d3LLM (Qian et al. 2026, arXiv 2601.07568).

    The loss of gen.distillers.dparallel on states of the teacher's own decoding. The first view masks the share of a
    block that the teacher committed last, the second the rest of it. The student is decoded by the policy `entropy` in
    `multi` blocks of the last length.

    Measured as dParallel (5 minutes; --objective.blocks "[4,8]" --objective.ramp_updates 1200 --steps 1500): one token
    a step 100 percent of the answers right, .69 tokens per forward; threshold .97 99.1, 2.71; .9 96.3, 3.24; entropy .1
    99.3, 2.56; .5, the student's default, 93.0, 3.62. On answers of at most 8 tokens, whose order says little, that is
    no more than dParallel has.

    Attributes:
        blocks: lengths of a block, one after another, each for an equal part of the ramp; the paper's.
        ratio: share of a block that the first view masks, before and after the ramp, in [0, 1]; the paper's.
        ramp_updates: updates over which ratio and block grow, at least 1; then both stay.
    """

    blocks: tuple[int, ...] = (16, 24, 32)
    ratio: tuple[float, float] = (0.0, 0.8)
    ramp_updates: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, blocks="[1, inf)", ratio="[0, 1]", ramp_updates="[1, inf)")
        if not self.blocks:
            raise UserError(f"Trajectory: blocks = {self.blocks}; at least one block length")

    def student_decoding(self, decoding: Decoding) -> Decoding:
        return replace(decoding, policy=Entropy(), block_schedule=Multi(length=self.blocks[-1]))

    def stage(self, update: int) -> tuple[int, float]:
        """Return the length of a block and the ratio at an update."""
        share = min(update / self.ramp_updates, 1.0)
        low, high = self.ratio
        return self.blocks[min(int(share * len(self.blocks)), len(self.blocks) - 1)], low + (high - low) * share

    def masks(self, net: nn.Module, tokens: TokenBatch, batch: Batch) -> tuple[Tensor, Tensor]:
        if "commit_step" not in batch.cond:
            raise UserError("Trajectory needs answers with the step of each token: this data has none")
        length, ratio = self.stage(batch.step)
        block = random_block(net, tokens, length, batch.noise.uniform("block"))
        return block, last_committed(batch.cond["commit_step"], block, ratio)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the loss at the end of the ramp, on fixed blocks."""
        return super().validate(roles, replace(batch, step=self.ramp_updates))


def last_committed(step: Tensor, block: Tensor, ratio: float) -> Tensor:
    """Return the positions of each block that were committed last, bool [B, L]; later ones first among equals.

    Args:
        step: at which each position was committed, [B, L].
        block: positions of the block, bool [B, L].
        ratio: share of the block; the number of positions is rounded.
    """
    order = torch.where(block, step, -torch.inf).argsort(dim=1, stable=True)  # those outside come first
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(step.shape[1], device=step.device).expand_as(order))
    count = (block.sum(1, keepdim=True) * ratio).round()
    return block & (step.shape[1] - 1 - rank < count)
