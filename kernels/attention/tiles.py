"""Attention under a rule on a CPU: PyTorch's kernel for some queries at a time, over the keys that any of them may see.

Of block diffusion's mask a quarter is allowed, of a causal one half; under a dense mask PyTorch computes all of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, Causal, MaskRule

__all__ = ["incompatible_reason", "run"]

QUERIES = 64  # of a tile: fewer leave out more, and take more calls
SHORTEST = 256  # keys; below, a call costs more than what it leaves out
WORTH = 0.75  # tiles that hold more of all scores than this are not worth their calls


class Tile(NamedTuple):
    """Some queries, and what they attend to.

    Attributes:
        first, last: the queries, [first, last).
        keys: ranges [first, last) of keys, in order.
        allowed: bool [last - first, keys]; None if all are.
        bias: the same as numbers to add to scores, 0 and -inf; None where a query attends to nothing, or all are.
    """

    first: int
    last: int
    keys: tuple[tuple[int, int], ...]
    allowed: Tensor | None
    bias: Tensor | None


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why leaving out tiles is no gain, or None."""
    rule, nq, nk = call.rule, call.q.shape[1], call.k.shape[1]
    if call.q.device.type != "cpu":
        return f"it is for a CPU, not {call.q.device.type}"
    if isinstance(rule, Bidirectional) or (isinstance(rule, Causal) and call.start_pos == 0):
        return f"{type(rule).__name__} needs no mask"
    if torch.compiler.is_compiling():
        return "a compiled graph would have a part for every tile"
    if nk < SHORTEST or nq < 4 * QUERIES:
        return f"{nq} queries and {nk} keys are too few"
    tiles = _tiles(rule, nq, nk, call.start_pos, call.q.dtype)
    share = sum((tile.last - tile.first) * sum(b - a for a, b in tile.keys) for tile in tiles) / (nq * nk)
    return None if share <= WORTH else f"its tiles hold {share:.0%} of all scores"


def run(call: AttentionCall) -> Tensor:
    """Compute the attention tile by tile."""
    call = call.after_norm_rope()
    q, k, v = (t.transpose(1, 2) for t in (call.q, call.k, call.v))  # views, [B, H, N, d]
    if q.shape[1] != k.shape[1]:  # no fast kernel takes a mask and shared heads
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scale = None if call.scale == q.shape[-1] ** -0.5 else call.scale
    parts = []
    for tile in _tiles(call.rule, q.shape[2], k.shape[2], call.start_pos, q.dtype):
        queries = q[:, :, tile.first : tile.last]
        if not tile.keys:
            parts.append(torch.zeros_like(queries) + 0 * v[:, :, :1])
            continue
        mask = tile.allowed if tile.bias is None else tile.bias
        if call.attn_mask is not None:
            rows = call.attn_mask if call.attn_mask.shape[1] == 1 else call.attn_mask[:, tile.first : tile.last]
            some = _ranges(rows, tile, 2)[:, None]
            mask = some if tile.allowed is None else some & tile.allowed
        some_k, some_v = _ranges(k, tile, 2), _ranges(v, tile, 2)
        parts.append(scaled_dot_product_attention(queries, some_k, some_v, mask, 0.0, False, scale=scale))
    return torch.cat(parts, 2).transpose(1, 2)  # [B, N, H, d]


def _ranges(value: Tensor, tile: Tile, dim: int) -> Tensor:
    """Return the tile's keys of a tensor: a view if they are one range."""
    parts = [value.narrow(dim, first, last - first) for first, last in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@lru_cache(maxsize=8)
def _tiles(rule: MaskRule, nq: int, nk: int, start: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Return the tiles of all queries."""
    keys, tiles = torch.arange(nk), []
    for first in range(0, nq, QUERIES):
        last = min(first + QUERIES, nq)
        allowed = rule.allowed(torch.arange(start + first, start + last)[:, None], keys)  # [Q, Nk]
        ranges = _true_ranges(allowed.any(0))
        some = torch.cat([allowed[:, a:b] for a, b in ranges], 1) if ranges else allowed[:, :0]
        if not ranges or bool(some.all()):
            tiles.append(Tile(first, last, ranges, None, None))
            continue
        bias = torch.zeros(some.shape, dtype=dtype).masked_fill_(~some, -torch.inf) if bool(some.any(1).all()) else None
        tiles.append(Tile(first, last, ranges, some, bias))
    return tuple(tiles)


def _true_ranges(true: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the ranges [first, last) in which a bool tensor [N] is True."""
    edges = torch.nn.functional.pad(true.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))
