"""Pieces of a batch that pass through the stages of a network one after the other, a stage to a process.

While a stage computes a piece, the stages before it compute the next ones. Activations travel from each stage to the
next, and nothing else does. (PipeFusion, Fang et al. 2024, arXiv 2405.14430.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gen.kernels.sequence_parallel.collectives import Group, Traffic

__all__ = ["OneStage", "ProcessStages", "Stages", "stage_blocks", "stage_bytes"]


def stage_blocks(stage: int, stages: int, depth: int) -> range:
    """Return the numbers of a stage's blocks; stages differ by one block at most.

    Args:
        stage: its number.
        stages: how many there are, no more than depth.
        depth: number of blocks.
    """
    return range(depth * stage // stages, depth * (stage + 1) // stages)


def stage_bytes(h: Tensor, out: Tensor, stage: int, stages: int) -> int:
    """Return the bytes that a stage sends in one evaluation: all tokens to the next, or the last one the output to all.

    Args:
        h: tokens of all pieces, [B, T, width].
        out: what the last stage sends to the others.
        stage: its number.
        stages: how many there are.
    """
    return h.nbytes if stage < stages - 1 else (stages - 1) * out.nbytes


class Stages(Protocol):
    """A row of stages.

    Attributes:
        stages: how many there are.
        stage: the number of this process's.
        traffic: what this process has sent.
    """

    stages: int
    stage: int
    traffic: Traffic

    def run(self, pieces: Sequence[Tensor], compute: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """Return the outputs of the last stage; on other processes, what only has their shapes.

        Args:
            pieces: inputs of the first stage, in the order in which they pass; of one shape.
            compute: (number of the piece, its input) -> its output, this stage's part, of the same shape.
        """
        ...

    def share(self, out: Tensor) -> Tensor:
        """Return the last stage's tensor on every process.

        Args:
            out: the last stage's, or any of its shape.
        """
        ...


@dataclass(eq=False)
class OneStage:
    """All stages on one process, where each piece passes through all of them before the next one begins.

    That gives the numbers of several processes: a stage always meets the pieces in their order.

    Attributes:
        stages, stage, traffic: as of Stages; nothing is sent.
    """

    stages: int
    traffic: Traffic
    stage: int = 0

    def run(self, pieces: Sequence[Tensor], compute: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        return [compute(i, piece) for i, piece in enumerate(pieces)]

    def share(self, out: Tensor) -> Tensor:
        return out


class ProcessStages:
    """One stage on each process of a group; see Stages for its attributes."""

    def __init__(self, group: Group = None):
        self.group, self.traffic = group, Traffic()
        self.stages, self.stage = dist.get_world_size(group), dist.get_rank(group)

    def run(self, pieces: Sequence[Tensor], compute: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        first, last = self.stage == 0, self.stage == self.stages - 1
        arriving = [] if first else [self._receive(i, piece) for i, piece in enumerate(pieces)]
        sent: list[tuple[Any, Tensor]] = []  # which live until they have been sent
        out = []
        for i, piece in enumerate(pieces):
            if not first:
                work, piece = arriving[i]
                work.wait()
            out.append(compute(i, piece))
            if not last:
                sent.append(self._send(i, out[-1].contiguous()))
        for work, _ in sent:
            work.wait()
        return out

    def share(self, out: Tensor) -> Tensor:
        out = out.contiguous()
        dist.broadcast(out, group_src=self.stages - 1, group=self.group)
        if self.stage == self.stages - 1:
            self.traffic.sent += (self.stages - 1) * out.nbytes
        return out

    def _receive(self, tag: int, like: Tensor) -> tuple[Any, Tensor]:
        place = torch.empty_like(like, memory_format=torch.contiguous_format)
        return dist.irecv(place, group=self.group, tag=tag, group_src=self.stage - 1), place

    def _send(self, tag: int, piece: Tensor) -> tuple[Any, Tensor]:
        self.traffic.sent += piece.nbytes
        return dist.isend(piece, group=self.group, tag=tag, group_dst=self.stage + 1), piece
