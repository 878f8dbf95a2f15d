"""Attention over the tokens of all processes by rings of Ulysses groups (USP).

Processes form a grid: a row exchanges heads by all-to-alls, as in ulysses.py, so that each process has all of the row's
tokens for some heads; a column, which holds the same heads and the tokens of other rows, passes keys and values around,
as in ring.py. Heads need only divide over a row, and of what a ring would send only the part between rows is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from gen.kernels.attention import BIDIRECTIONAL, MaskRule
from gen.kernels.rope import Pairs
from gen.kernels.sequence_parallel.collectives import Group, Traffic
from gen.kernels.sequence_parallel.ring import ring_attention, ring_attention_bytes
from gen.kernels.sequence_parallel.ulysses import exchange_heads, ulysses_attention_bytes

__all__ = ["ProcessGrid", "process_grid", "usp_attention", "usp_attention_bytes"]


@dataclass(frozen=True)
class ProcessGrid:
    """This process's row and column of a grid of processes.

    Attributes:
        row: exchanges heads; neighbours in rank, so that they are near each other on several machines.
        column: passes keys and values around.
    """

    row: Group
    column: Group


def process_grid(ulysses: int) -> ProcessGrid:
    """Make the groups of a grid of all processes; called by all of them at the same moment.

    Args:
        ulysses: processes of a row, which their number is a multiple of.

    Raises:
        ValueError: for another number.
    """
    count, rank = dist.get_world_size(), dist.get_rank()
    if ulysses < 1 or count % ulysses:
        raise ValueError(f"process_grid: {count} processes do not form rows of {ulysses}")
    rows = [dist.new_group([*range(first, first + ulysses)]) for first in range(0, count, ulysses)]
    columns = [dist.new_group([*range(first, count, ulysses)]) for first in range(ulysses)]
    return ProcessGrid(rows[rank // ulysses], columns[rank % ulysses])


def usp_attention(
    qkv: Tensor,
    rule: MaskRule = BIDIRECTIONAL,
    scale: float | None = None,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
    *,
    grid: ProcessGrid,
    traffic: Traffic | None = None,
) -> Tensor:
    """Compute packed_attention over P n tokens of which this process holds n; differentiable once.

    (Fang & Zhao 2024, arXiv 2405.07719, algorithm 1.)

    Args:
        qkv: this process's share, [B, n, 3, H, d].
        rule, scale, q_gain, k_gain, eps, cos, sin, pairs: as in ring_attention.
        grid: of the processes.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, n, H, d].

    Raises:
        ValueError: as ring_attention, and unless the processes U of a row divide H.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"usp_attention: qkv is {list(qkv.shape)}; it must be [B, N / P, 3, H, d]")
    heads, count = qkv.shape[3], dist.get_world_size(grid.row)
    if heads % count:
        raise ValueError(f"usp_attention: {heads} heads do not divide over rows of {count} processes")
    given = rule, scale, q_gain, k_gain, eps, cos, sin, pairs

    def attend(row: Tensor) -> Tensor:
        return ring_attention(row, *given, group=grid.column, traffic=traffic)

    return exchange_heads(qkv, attend, grid.row, traffic)


def usp_attention_bytes(qkv: Tensor, ulysses: int, ring: int, backward: bool = False) -> int:
    """Return the bytes that one process sends: those of Ulysses in its row, and of a ring of as many numbers.

    Args:
        qkv: this process's share.
        ulysses, ring: processes of a row and of a column, U and R.
        backward: adds those of the gradients.
    """
    return ulysses_attention_bytes(qkv, ulysses, backward) + ring_attention_bytes(qkv, ring, backward)
