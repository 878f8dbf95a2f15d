"""Attention of patches, equal parts of the tokens, to their own fresh keys and to others' of an earlier evaluation.

One process computes one part, or for measurements one process computes all of them in turn. Keys and values travel
while later layers are computed. (DistriFusion, Li et al. 2024, arXiv 2402.19481; PCPP, Zhang et al. 2024, arXiv
2412.02962, here with only the portion that is attended to on its way.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from gen.kernels.attention import attention
from gen.kernels.rope import norm_rope
from gen.kernels.sequence_parallel.collectives import Group, Traffic, gather_tokens, local_tokens

__all__ = [
    "Arriving",
    "OneProcess",
    "PatchExchange",
    "Processes",
    "Surroundings",
    "edge_bytes",
    "patch_attention",
    "patch_exchange_bytes",
    "patch_window",
]

Surroundings = tuple[Tensor, Tensor]  # keys and values before and after a part's own, each [B, some, 2, H, d]
Arriving = Callable[[], list[Surroundings]]  # waits for the surroundings of this process's parts


def patch_window(part: int, parts: int, tokens: int, portion: float | None = None) -> range:
    """Return the positions that a part attends to: all, or its own and a portion of each neighbour's.

    Args:
        part: its number.
        parts: how many there are, which divides tokens.
        tokens: of all parts.
        portion: in [0, 1], the nearest share of a neighbour's; rounded up above the part and down below it, as
            published. None for all positions of all parts.
    """
    if portion is None:
        return range(tokens)
    own = tokens // parts
    above, below = _portions(own, portion)
    return range(max(0, part * own - above), min(tokens, (part + 1) * own + below))


def patch_exchange_bytes(kv: Tensor, part: int, parts: int, portion: float | None = None) -> int:
    """Return the bytes that a process sends for one layer's attention.

    Args:
        kv: its own keys and values, [B, n, 2, H, d].
        part: its number; the first and the last have one neighbour.
        parts: how many there are, P.
        portion: that travels; None for all of it, to the P - 1 others.
    """
    if portion is None:
        return (parts - 1) * kv.nbytes
    return edge_bytes(kv, part, parts, *_portions(kv.shape[1], portion))


def edge_bytes(h: Tensor, part: int, parts: int, above: int, below: int) -> int:
    """Return the bytes that a process sends to its neighbours: last tokens to the next part, first ones to the other.

    Args:
        h: its own tokens, or rows of a picture, [B, n, ...].
        part: its number; the first and the last have one neighbour.
        parts: how many there are.
        above, below: of a neighbour's tokens, those that a part needs before and after its own.
    """
    return (above * (part < parts - 1) + below * (part > 0)) * h.nbytes // h.shape[1]


def patch_attention(
    qkv: Tensor,
    kv: Tensor,
    queries: range,
    keys: range,
    *,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Compute the attention of a part's queries to the keys of its window.

    Args:
        qkv: the part's own, [B, n, 3, H, d], before norm and rotation.
        kv: keys and values of the window, [B, m, 2, H, d], before norm and rotation.
        queries, keys: positions of both among all T.
        q_gain, k_gain, eps: as in packed_attention.
        cos, sin: tables of all T positions, or None.

    Returns:
        [B, n, H, d].
    """

    def prepared(x: Tensor, gain: Tensor | None, at: range) -> Tensor:
        if gain is None and cos is None:
            return x
        mine = [None if table is None else table[..., at.start : at.stop, :] for table in (cos, sin)]
        return norm_rope(x, gain, eps, mine[0], mine[1])

    k, v = kv.unbind(2)
    return attention(prepared(qkv[:, :, 0], q_gain, queries), prepared(k, k_gain, keys), v)


class PatchExchange(Protocol):
    """Exchange of tokens, keys and values between parts.

    Attributes:
        parts: how many there are.
        traffic: what this process has sent.
    """

    parts: int
    traffic: Traffic

    @property
    def own(self) -> Sequence[int]:
        """The numbers of the parts that this process computes, in order."""
        ...

    def local(self, h: Tensor) -> Tensor:
        """Return this process's tokens [B, n, ...] of all tokens [B, T, ...].

        Args:
            h: the same on every process.
        """
        ...

    def gather(self, h: Tensor) -> Tensor:
        """Return all tokens [B, T, ...] on every process.

        Args:
            h: this process's tokens.
        """
        ...

    def start(self, kv: Tensor, portion: float | None) -> Arriving:
        """Begin to send this process's keys and values, and return how to wait for the others'.

        Args:
            kv: [B, n, 2, H, d], n tokens of all own parts.
            portion: of them that a neighbour needs; None for all, to everyone.
        """
        ...

    def start_edges(self, h: Tensor, above: int, below: int) -> Arriving:
        """Begin to send the neighbours what they need, and return how to wait for what this process's parts need.

        Args:
            h: this process's tokens, or rows of a picture, [B, n, ...].
            above, below: tokens that a part needs before and after its own; there are none beyond the first and last.
        """
        ...

    def start_all(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to send values of this process's parts, [own, ...], and return how to wait for all parts', [P, ...]."""
        ...


def around(whole: Tensor, part: int, parts: int, portion: float | None) -> Surroundings:
    """Return what lies in a part's window before and after it.

    Args:
        whole: keys and values of all tokens, [B, T, 2, H, d].
        part, parts, portion: as in `patch_window`.
    """
    window, own = patch_window(part, parts, whole.shape[1], portion), whole.shape[1] // parts
    return whole[:, window.start : part * own], whole[:, (part + 1) * own : window.stop]


def beside(whole: Tensor, part: int, parts: int, above: int, below: int) -> Surroundings:
    """Return the nearest tokens before and after a part, of `whole` [B, T, ...]; fewer where it begins or ends."""
    own = whole.shape[1] // parts
    start, stop = part * own, (part + 1) * own
    return whole[:, max(0, start - above) : start], whole[:, stop : stop + below]


@dataclass(eq=False)
class OneProcess:
    """All parts on one process: nothing travels, and quality can be measured before there are several.

    Attributes:
        parts: as of PatchExchange.
        traffic: stays 0.
    """

    parts: int
    traffic: Traffic

    @property
    def own(self) -> Sequence[int]:
        return range(self.parts)

    def local(self, h: Tensor) -> Tensor:
        return h

    def gather(self, h: Tensor) -> Tensor:
        return h

    def start(self, kv: Tensor, portion: float | None) -> Arriving:
        return lambda: [around(kv, part, self.parts, portion) for part in self.own]

    def start_edges(self, h: Tensor, above: int, below: int) -> Arriving:
        edges = [beside(h, part, self.parts, above, below) for part in self.own]
        kept = [(before.clone(), after.clone()) for before, after in edges]  # and not all of h
        return lambda: kept

    def start_all(self, values: Tensor) -> Callable[[], Tensor]:
        return lambda: values


class Processes:
    """One part on each process of a group; see PatchExchange for its attributes."""

    def __init__(self, group: Group = None):
        self.group, self.traffic = group, Traffic()
        self.parts, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.tag = 0  # of the next exchange with neighbours; several are under way at once

    @property
    def own(self) -> Sequence[int]:
        return (self.rank,)

    def local(self, h: Tensor) -> Tensor:
        return local_tokens(h, self.group)

    def gather(self, h: Tensor) -> Tensor:
        return gather_tokens(h, group=self.group, traffic=self.traffic)

    def start(self, kv: Tensor, portion: float | None) -> Arriving:
        if portion is not None:
            return self.start_edges(kv, *_portions(kv.shape[1], portion))
        arriving = self.start_all(kv[None])
        return lambda: [around(arriving().movedim(0, 1).flatten(1, 2), self.rank, self.parts, None)]

    def start_all(self, values: Tensor) -> Callable[[], Tensor]:
        values = values.contiguous()
        self.traffic.sent += (self.parts - 1) * values.nbytes
        out = values.new_empty(self.parts * len(values), *values.shape[1:])
        work: Any = dist.all_gather_into_tensor(out, values, group=self.group, async_op=True)

        def wait(sent: Tensor = values) -> Tensor:  # which must live until then
            work.wait()
            return out

        return wait

    def start_edges(self, h: Tensor, above: int, below: int) -> Arriving:
        n = h.shape[1]
        self.traffic.sent += edge_bytes(h, self.rank, self.parts, above, below)
        self.tag = (self.tag + 2) % 2**20
        before, after = (h.new_empty(h.shape[0], size, *h.shape[2:]) for size in (above, below))
        ops, sent = [], [h[:, n - above :].contiguous(), h[:, :below].contiguous()]
        for peer, tensors, tags in (
            (self.rank - 1, (before, sent[1]), (self.tag, self.tag + 1)),
            (self.rank + 1, (after, sent[0]), (self.tag + 1, self.tag)),
        ):
            if 0 <= peer < self.parts:
                for way, tensor, tag in zip((dist.irecv, dist.isend), tensors, tags, strict=True):
                    if tensor.numel():
                        ops.append(dist.P2POp(way, tensor, group=self.group, tag=tag, group_peer=peer))
        works = dist.batch_isend_irecv(ops) if ops else []
        first, last = self.rank == 0, self.rank == self.parts - 1

        def wait(sent: list[Tensor] = sent) -> list[Surroundings]:
            for work in works:
                work.wait()
            return [(before[:, :0] if first else before, after[:, :0] if last else after)]

        return wait


def _portions(own: int, portion: float) -> tuple[int, int]:
    """Return the numbers of tokens of the neighbour above and of the one below, rounded as published."""
    return math.ceil(own * portion - 1e-9), math.floor(own * portion + 1e-9)
