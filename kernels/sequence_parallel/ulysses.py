"""Attention over the tokens of all processes by two all-to-alls (DeepSpeed Ulysses)."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from gen.kernels.attention import BIDIRECTIONAL, MaskRule, packed_attention
from gen.kernels.rope import Pairs
from gen.kernels.sequence_parallel.collectives import Group, Traffic, all_to_all

__all__ = ["exchange_heads", "ulysses_attention", "ulysses_attention_bytes"]


def ulysses_attention(
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
    group: Group = None,
    traffic: Traffic | None = None,
) -> Tensor:
    """Compute packed_attention over P n tokens of which this process holds n.

    One all-to-all gives each process all tokens of H / P heads, attention is local, and another takes its output back;
    so the numbers are those of one process, to the bit. (Jacobs et al. 2023, arXiv 2309.14509, section 3.)

    Args:
        qkv: this process's share, [B, n, 3, H, d].
        rule: over all P n positions.
        scale, q_gain, k_gain, eps, pairs: as in packed_attention.
        cos, sin: tables of all P n positions, or None.
        group: the processes; all by default.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, n, H, d].

    Raises:
        ValueError: for other shapes, and unless P divides H.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"ulysses_attention: qkv is {list(qkv.shape)}; it must be [B, N / P, 3, H, d]")
    count, heads = dist.get_world_size(group), qkv.shape[3]
    if heads % count:
        raise ValueError(f"ulysses_attention: {heads} heads do not divide over {count} processes; take ring_attention")
    given = rule, scale, q_gain, k_gain, eps, cos, sin, pairs
    return exchange_heads(qkv, lambda whole: packed_attention(whole, *given), group, traffic)


def exchange_heads(qkv: Tensor, attend: Callable[[Tensor], Tensor], group: Group, traffic: Traffic | None) -> Tensor:
    """Return this process's tokens of attention that is computed with all tokens of a share of the heads.

    Args:
        qkv: this process's share, [B, n, 3, H, d].
        attend: from all tokens of P processes, [B, P n, 3, H / P, d], to [B, P n, H / P, d].
        group: the processes.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, n, H, d].
    """
    (b, n, _, _, d), count = qkv.shape, dist.get_world_size(group)
    parts = qkv.reshape(b, n, 3, count, -1, d).movedim(3, 0)  # [P, B, n, 3, H / P, d], by where they go
    mixed = attend(all_to_all(parts, group, traffic).movedim(0, 1).flatten(1, 2))  # [B, P n, H / P, d]
    back = all_to_all(mixed.reshape(b, count, n, -1, d).movedim(1, 0), group, traffic)  # [P, B, n, H / P, d]
    return back.movedim(0, 2).flatten(2, 3)


def ulysses_attention_bytes(qkv: Tensor, processes: int, backward: bool = False) -> int:
    """Return the bytes that one process sends: 4 (P - 1) / P of B n H d numbers, 3 for qkv and 1 for the output.

    n is the process's own share of the tokens, so that is 4 (P - 1) / P^2 of the whole sequence's.

    Args:
        qkv: this process's share.
        processes: their number P.
        backward: doubles it.
    """
    return 4 * (qkv.nbytes // 3) * (processes - 1) // processes * (1 + backward)
