"""Attention under a rule on a CPU: some queries at a time, over the keys that any of them may attend to.

Of block diffusion's mask a quarter is allowed, of a causal one half; under a dense mask PyTorch computes all of it. No
tensor of N x N exists: masks are those of a tile, and the backward pass computes a tile's weights again (as
FlashAttention does: Dao et al. 2022, arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, Causal, MaskRule
from gen.kernels.lib.autograd import transform_reason

__all__ = ["SHORTEST", "incompatible_reason", "run"]

QUERIES = 64  # of a tile: fewer leave out more, and take more calls
SHORTEST = 256  # positions; below, a call costs more than what it leaves out
WORTH = 0.75  # tiles that hold more of all scores than this are not worth their calls
SCORES = 2**21  # numbers at a time in the backward pass: 8 MiB

Ranges = tuple[tuple[int, int], ...]


class Tile(NamedTuple):
    """Some queries, and what the rule lets them attend to.

    Attributes:
        first, last: the queries, [first, last).
        keys: ranges [first, last) of keys, in order.
        partial: positions of keys that some of the queries may attend to and others not, int64 [P].
        allowed: which may, bool [last - first, P].
        blind: whether there is a query that attends to nothing.
    """

    first: int
    last: int
    keys: Ranges
    partial: Tensor
    allowed: Tensor
    blind: bool

    @property
    def width(self) -> int:
        """Number of keys."""
        return sum(last - first for first, last in self.keys)


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why leaving out tiles is no gain, or None.

    Args:
        call: the complete arguments.
    """
    rule, nq, nk = call.rule, call.q.shape[1], call.k.shape[1]
    if call.q.device.type != "cpu":
        return f"it is for a CPU, not {call.q.device.type}"
    simple = isinstance(rule, Bidirectional) or (isinstance(rule, Causal) and call.start_pos == 0)
    if simple and call.documents is None:
        return f"{type(rule).__name__} needs no mask"
    if torch.compiler.is_compiling():
        return "a compiled graph would have a part for every tile"
    if isinstance(call.q, FakeTensor):
        return "of tensors without values every tile would be counted by itself, which takes minutes"
    if nk < SHORTEST or nq < SHORTEST:
        return f"{nq} queries and {nk} keys are too few"
    reason = transform_reason(call.q, call.k, call.v)
    if reason is not None or call.documents is not None:
        return reason
    share = sum((t.last - t.first) * t.width for t in _tiles(rule, nq, nk, call.start_pos)) / (nq * nk)
    return None if share <= WORTH else f"its tiles hold {share:.0%} of all scores"


def run(call: AttentionCall) -> Tensor:
    """Compute the attention tile by tile; the gradient is computed in the same way, and keeps q, k and v alone.

    Args:
        call: the complete arguments.
    """
    call = call.after_norm_rope()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (call.q, call.k, call.v)):
        given = (call.attn_mask, call.documents, call.rule, call.start_pos, call.scale)
        apply: Callable[..., Tensor] = _Tiled.apply
        return apply(call.q, call.k, call.v, *given)
    return _forward(call)


class _Tiled(torch.autograd.Function):
    """The attention with a gradient of its own."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, documents: Tensor | None, rule: MaskRule,
        start: int, scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(q, k, v, mask, documents)
        ctx.constants = rule, start, scale
        return _forward(AttentionCall(q, k, v, rule, scale, mask, start, documents=documents))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, documents = ctx.saved_tensors
        rule, start, scale = ctx.constants
        grads = _backward(AttentionCall(q, k, v, rule, scale, mask, start, documents=documents), dout)
        return *grads, None, None, None, None, None


def _forward(call: AttentionCall) -> Tensor:
    """Return the output, by PyTorch's kernel for each tile."""
    q, k, v = (t.transpose(1, 2) for t in (call.q, call.k, call.v))  # views, [B, H, N, d]
    if q.shape[1] != k.shape[1]:  # no fast kernel takes a mask and shared heads
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scale = None if call.scale == q.shape[-1] ** -0.5 else call.scale
    parts = []
    for tile in _tiles_of(call):
        queries = q[:, :, tile.first : tile.last]
        if not tile.keys:
            parts.append(torch.zeros_like(queries) + 0 * v[:, :, :1])
            continue
        mask = _allowed(call, tile)
        if mask is not None and mask.ndim == 2 and not tile.blind:  # as numbers, which PyTorch would make of it
            mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        elif mask is not None and mask.ndim == 3:
            mask = mask[:, None]
        some_k, some_v = _ranges(k, tile.keys, 2), _ranges(v, tile.keys, 2)
        parts.append(scaled_dot_product_attention(queries, some_k, some_v, mask, 0.0, False, scale=scale))
    return torch.cat(parts, 2).transpose(1, 2)  # [B, N, H, d]


def _backward(call: AttentionCall, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, each tile's weights computed again; sums are float32 at least."""
    (b, _, h, d), heads = call.q.shape, call.k.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    k, v = (t.transpose(1, 2).reshape(b * heads, -1, d) for t in (call.k, call.v))  # [B Hkv, N, d]
    dq, dk, dv = torch.empty_like(call.q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    for tile in _tiles_of(call):
        rows = slice(tile.first, tile.last)
        if not tile.keys:
            dq[:, rows] = 0
            continue
        mask = _allowed(call, tile)
        # The queries that share a head of k and v one after the other, [B Hkv, group Q, d].
        q, do = (_grouped(t[:, rows], heads).to(wide) for t in (call.q, dout))
        parts = []
        each = max(1, SCORES // (q.shape[1] * tile.width))
        for some in (slice(i, i + each) for i in range(0, b * heads, each)):
            keys, values = (_ranges(t[some], tile.keys, 1).to(wide) for t in (k, v))
            weights = _weights(call.scale * q[some] @ keys.mT, mask, some, heads)
            grad = do[some] @ values.mT
            # d softmax: p (g - <p, g>)
            grad = grad.sub_((weights * grad).sum(-1, keepdim=True)).mul_(weights).mul_(call.scale)
            parts.append(grad @ keys)
            for out, piece in ((dk, grad.mT @ q[some]), (dv, weights.mT @ do[some])):
                _add_ranges(out[some], tile.keys, piece)
        dq[:, rows] = torch.cat(parts).view(b, heads, h // heads, -1, d).permute(0, 3, 1, 2, 4).flatten(2, 3).to(dq)
    dk, dv = (t.to(call.k.dtype).view(b, heads, -1, d).transpose(1, 2) for t in (dk, dv))
    return dq, dk, dv


def _weights(scores: Tensor, mask: Tensor | None, some: slice, heads: int) -> Tensor:
    """Return the softmax of scores [R, group Q, K] of rows `some` of [B Hkv]; 0 for a query that attends to nothing."""
    if mask is None:
        return scores.softmax(-1)
    if mask.ndim == 2:
        forbidden = ~mask[None]
    else:
        row = torch.arange(some.start, some.start + len(scores)) // heads
        forbidden = ~mask[row if mask.shape[0] > 1 else row * 0]  # [R, Q, K]
    grouped = scores.unflatten(1, (-1, mask.shape[-2])).masked_fill_(forbidden[:, None], -torch.inf)
    return grouped.softmax(-1).masked_fill_(forbidden[:, None], 0).flatten(1, 2)


def _grouped(t: Tensor, heads: int) -> Tensor:
    """Return [B, Q, H, d] as [B heads, H / heads Q, d]."""
    b, _, _, d = t.shape
    return t.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).reshape(b * heads, -1, d)


def _allowed(call: AttentionCall, tile: Tile) -> Tensor | None:
    """Return which of a tile's keys its queries attend to, bool [Q, K] or [B or 1, Q, K]; None for all."""
    allowed = None
    if len(tile.partial):
        columns = torch.searchsorted(torch.cat([torch.arange(a, b) for a, b in tile.keys]), tile.partial)
        allowed = torch.ones(tile.last - tile.first, tile.width, dtype=torch.bool)
        allowed[:, columns] = tile.allowed
    rows = []
    if call.attn_mask is not None:
        mask = call.attn_mask if call.attn_mask.shape[1] == 1 else call.attn_mask[:, tile.first : tile.last]
        rows.append(_ranges(mask, tile.keys, 2).expand(-1, tile.last - tile.first, -1))
    if call.documents is not None:
        mine = call.documents[:, call.start_pos + tile.first : call.start_pos + tile.last]
        rows.append(mine[..., None] == _ranges(call.documents, tile.keys, 1)[:, None])
    for each in rows:
        allowed = each if allowed is None else allowed & each
    return allowed


def _ranges(value: Tensor, keys: Ranges, dim: int) -> Tensor:
    """Return a tensor's part in ranges of keys: a view if they are one range."""
    parts = [value.narrow(dim, first, last - first) for first, last in keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _add_ranges(out: Tensor, keys: Ranges, piece: Tensor) -> None:
    """Add a piece [R, K, d] to the ranges of keys of out [R, N, d]."""
    at = 0
    for first, last in keys:
        out[:, first:last] += piece[:, at : at + last - first]
        at += last - first


def _tiles_of(call: AttentionCall) -> Iterator[Tile]:
    """Yield the tiles of a call: the rule's, without the keys that no document of the tile's queries has."""
    documents, start = call.documents, call.start_pos
    for tile in _tiles(call.rule, call.q.shape[1], call.k.shape[1], start):
        if documents is None:
            yield tile
            continue
        mine = documents[:, start + tile.first : start + tile.last]
        theirs = documents[:, : call.k.shape[1]]
        near = ((theirs >= mine.amin(1, True)) & (theirs <= mine.amax(1, True))).any(0)
        kept = torch.zeros_like(near)
        for first, last in tile.keys:
            kept[first:last] = near[first:last]
        some = kept[tile.partial]
        yield tile._replace(keys=_true_ranges(kept), partial=tile.partial[some], allowed=tile.allowed[:, some])


@lru_cache(maxsize=8)
def _tiles(rule: MaskRule, nq: int, nk: int, start: int) -> tuple[Tile, ...]:
    """Return the tiles of all queries, as tensors that hold numbers even where a dry run's do not."""
    tiles = []
    with unset_fake_temporarily(), torch.inference_mode(False):
        keys = torch.arange(nk)
        for first in range(0, nq, QUERIES):
            last = min(first + QUERIES, nq)
            allowed = rule.allowed(torch.arange(start + first, start + last)[:, None], keys)  # [Q, Nk]
            some, blind = allowed.any(0), not bool(allowed.any(1).all())
            partial = (some & ~allowed.all(0)).nonzero()[:, 0]
            tiles.append(Tile(first, last, _true_ranges(some), partial, allowed[:, partial], blind))
    return tuple(tiles)


def _true_ranges(true: Tensor) -> Ranges:
    """Return the ranges [first, last) in which a bool tensor [N] is True."""
    edges = torch.nn.functional.pad(true.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))
