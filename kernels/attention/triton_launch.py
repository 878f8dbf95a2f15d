"""Attention by our Triton kernels: custom ops, their gradients, and the lists of tiles that a rule leaves to compute.

There are two ops over one set of kernels. That of packed q, k and v writes their gradients into one packed tensor, as
the product before it wants them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import KINDS, Bidirectional, MaskRule, decode, encode
from gen.kernels.lib import autograd, triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED

__all__ = ["TileList", "backward", "forward", "incompatible_reason", "run", "sizes", "split", "tile_lists"]


class TileList(NamedTuple):
    """For each of n tiles the tiles of the other side: first those that are allowed in full, then those in part.

    Attributes:
        tiles: indices, int32 [n, m], of which the first full + partial count.
        full, partial: how many of each kind, int32 [n].
    """

    tiles: Tensor
    full: Tensor
    partial: Tensor


class TilePlan(NamedTuple):
    """The kernels' arguments that follow from a rule: codes of keys and queries, and the tiles to visit.

    Attributes:
        codes: level, reach, segment of keys, segment of queries.
        by_query: tiles of keys for each tile of queries.
        by_key: tiles of queries for each tile of keys.
    """

    codes: tuple[Tensor, Tensor, Tensor, Tensor]
    by_query: TileList
    by_key: TileList


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    q, k, v = call.q, call.k, call.v
    reason = triton_support.incompatible_reason(q, k, v, call.attn_mask) or triton_support.mixed_dtypes_reason(q, k, v)
    if reason is not None:
        return reason
    if call.documents is not None:
        return "the codes of a rule are the same for all samples, and documents are not"
    if not isinstance(call.rule, KINDS):
        return f"{type(call.rule).__name__} has no codes"
    if not 16 <= q.shape[-1] <= 128:
        return f"head dim {q.shape[-1]}; kernels take 16 to 128"
    return triton_support.grid_reason(q.shape[0] * q.shape[2], "heads in all") or triton_support.stride_reason(q, k, v)


def run(call: AttentionCall) -> Tensor:
    """Compute the attention by the op for packed tensors if there is nothing to do before it."""
    if call.qkv is not None and not call.needs_norm_rope:
        return _packed_attention(call.qkv, encode(call.rule), call.scale)[0]
    call = call.after_norm_rope()
    return forward(call.q, call.k, call.v, call.attn_mask, encode(call.rule), call.start_pos, call.scale)[0]


def split(dim: int) -> tuple[int, int]:
    """Return two powers of two that hold a head dim: 72 -> (64, 16); the second is 0 where one is enough."""
    first = 1 << (dim.bit_length() - 1)
    rest = dim - first
    if rest == 0:
        return first, 0
    second = triton_support.power_of_2(rest, 16)
    return (2 * first, 0) if second >= first else (first, second)


def tile_lists(codes: tuple[Tensor, Tensor, Tensor, Tensor], bm: int, bn: int) -> tuple[TileList, TileList]:
    """Return the tiles of bn keys for each tile of bm queries, and the tiles of queries for each tile of keys.

    A tile without any allowed pair can still be listed, as partial, where ranges of segments overlap: it is masked.
    """
    level, reach, segment_k, segment_q = codes
    (low_level, high_level), (low_reach, high_reach) = _range(level, bn), _range(reach, bm)
    low_q, high_q, low_k, high_k = *_range(segment_q, bm, segment_q >= 0), *_range(segment_k, bn, segment_k >= 0)
    all_q, all_k = _range(segment_q, bm)[0], _range(segment_k, bn)[0]
    near = (low_q[:, None] <= high_k) & (low_k <= high_q[:, None])
    some = (low_level <= high_reach[:, None]) | near
    one = (low_q == high_q) & (all_q >= 0), (low_k == high_k) & (all_k >= 0)
    full = (high_level <= low_reach[:, None]) | (one[0][:, None] & one[1] & (low_q[:, None] == low_k))
    ends_q, ends_k = ((torch.arange(len(v)) + 1) * size for v, size in ((low_reach, bm), (low_level, bn)))
    full &= (ends_q <= len(reach))[:, None] & (ends_k <= len(level))  # ragged tiles are masked
    return _listed(some, full), _listed(some.mT, full.mT)


def _range(values: Tensor, size: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest of each run of `size`; an empty interval where none is valid."""
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    limits = torch.iinfo(values.dtype)

    def runs(filled: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(filled, (0, -len(values) % size), value=fill).reshape(-1, size)

    low = runs(values.where(valid, limits.max), limits.max).amin(1)
    return low, runs(values.where(valid, limits.min), limits.min).amax(1)


def _listed(some: Tensor, full: Tensor) -> TileList:
    rank = (~some).int() * 2 + (~full).int()  # 0 in full, 1 in part, 2 and 3 not at all
    tiles = rank.argsort(dim=1, stable=True).int()
    return TileList(tiles.contiguous(), (some & full).sum(1).int(), (some & ~full).sum(1).int())


@lru_cache(maxsize=256)
def _plan(
    rule: MaskRule, nq: int, nk: int, start: int, masked: bool, bm: int, bn: int, device: torch.device
) -> TilePlan:
    """Return the plan of a shape, kept for the last few: a cache of keys and values has another with every step."""
    level, reach, segment = rule.codes(max(nk, start + nq))  # type: ignore[attr-defined]
    codes = (level[:nk], reach[start : start + nq], segment[:nk], segment[start : start + nq])
    by_query, by_key = tile_lists(codes, bm, bn)
    # Copies: what begins in the middle of a tensor may not lie as kernels read it fastest.
    level, reach, segment_k, segment_q = (v.clone().to(device) for v in codes)
    return TilePlan(
        (level, reach, segment_k, segment_q), _moved(by_query, masked, device), _moved(by_key, masked, device)
    )


def _moved(given: TileList, masked: bool, device: torch.device) -> TileList:
    """Return the list on the device; under a mask no tile is allowed in full."""
    tiles, full, partial = given
    if masked:
        full, partial = torch.zeros_like(full), full + partial
    return TileList(tiles.to(device), full.to(device), partial.to(device))


def _constants(q: Tensor, k: Tensor, rule: list[int], mask: Tensor | None) -> dict[str, object]:
    d0, d1 = split(q.shape[-1])
    return {
        "D": q.shape[-1],
        "D0": d0,
        "D1": d1,
        "GROUP": q.shape[2] // k.shape[2],
        "RULED": not isinstance(decode(rule), Bidirectional),
        "MASKED": mask is not None,
        **triton_support.dot_constants(q.dtype),
    }


def sizes(dtype: torch.dtype, backward: bool, masked: bool = False) -> dict[str, int]:
    """Return tiles and warps, from register and shared-memory counts of compiled kernels, not from timings."""
    if INTERPRETED:
        return {"BM": 16, "BN": 32}
    if dtype == torch.float32 and backward and not masked:
        return {"BM": 16, "BN": 16, "num_warps": 4, "num_stages": 1}
    if dtype == torch.float32:
        return {"BM": 32, "BN": 16, "num_warps": 8, "num_stages": 1}
    if masked:
        return {"BM": 64, "BN": 64, "num_warps": 8, "num_stages": 2}
    if backward:
        return {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}
    return {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 2}


def _strides(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> list[int]:
    """Return the strides of samples, positions and heads of q, k and v; of the mask's dimensions, 0 where all share."""
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    if mask is None:
        return [*strides, 0, 0, 0]
    return [*strides, *(0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True))]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: list[int], start: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, Nq, H, d], and the base-2 logarithm of the softmax's sum, float32 [B, H, Nq]."""
    from gen.kernels.attention import triton_kernels

    (b, nq, h, _), nk = q.shape, k.shape[1]
    out, lse = _empty_outputs(q)
    size = sizes(q.dtype, False, mask is not None)
    codes, by_query, _ = _plan(decode(rule), nq, nk, start, mask is not None, size["BM"], size["BN"], q.device)
    triton_support.launch(
        triton_kernels.forward, (len(by_query.tiles), b * h), q,
        q, k, v, out, lse, *codes, None if mask is None else mask.view(torch.int8), *by_query,
        *_strides(q, k, v, mask), nq, nk, h, by_query.tiles.shape[1], scale, **_constants(q, k, rule, mask), **size,
    )  # fmt: skip
    return out, lse


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    b, n, h, d = q.shape
    return q.new_empty(b, n, h, d), q.new_empty(b, h, n, dtype=torch.float32)


def _backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor,
    rule: list[int], start: int, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Write the gradients; dk and dv have the same strides."""
    from gen.kernels.attention import triton_kernels

    (b, nq, h, d), (_, nk, h_k, _) = q.shape, k.shape
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dots, strides = torch.empty_like(lse), dout.stride()[:3]
    size, constants = sizes(q.dtype, True, mask is not None), _constants(q, k, rule, mask)
    plan = _plan(decode(rule), nq, nk, start, mask is not None, size["BM"], size["BN"], q.device)
    d0, d1 = split(d)
    triton_support.launch(
        triton_kernels.row_dots, (len(plan.by_query.tiles), b * h), q,
        out, dout, dots, *strides, nq, h, D=d, WIDTH=2 * d0 if d1 else d0, BM=size["BM"],
    )  # fmt: skip
    bits = None if mask is None else mask.view(torch.int8)
    for kernel, heads, listed, grads in (
        (triton_kernels.backward_dkv, h_k, plan.by_key, (dk, dv)),
        (triton_kernels.backward_dq, h, plan.by_query, (dq,)),
    ):
        triton_support.launch(
            kernel, (len(listed.tiles), b * heads), q,
            q, k, v, dout, lse, dots, *grads, *plan.codes, bits, *listed,
            *_strides(q, k, v, mask), *strides, *grads[0].stride()[:3],
            nq, nk, h, listed.tiles.shape[1], scale, **constants, **size,
        )  # fmt: skip


@torch.library.custom_op("gen_kernels::packed_attention", mutates_args=())
def _packed_attention(qkv: Tensor, rule: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the output and the logarithm of the sum, of packed q, k and v."""
    q, k, v = qkv.unbind(2)
    return _forward(q, k, v, None, rule, 0, scale)


@_packed_attention.register_fake
def _(qkv: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(qkv[:, :, 0])


@torch.library.custom_op("gen_kernels::packed_attention_backward", mutates_args=())
def _packed_backward(qkv: Tensor, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int], scale: float) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), dqkv.unbind(2)
    _backward(q, k, v, None, out, lse, dout, rule, 0, scale, dq, dk, dv)
    return dqkv


@_packed_backward.register_fake
def _(qkv: Tensor, *rest: object) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _packed_gradient(ctx: Context, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    return _packed_backward(*ctx.saved_tensors, dout, *ctx.constants), None, None


_packed_attention.register_autograd(_packed_gradient, setup_context=autograd.save_inputs_and_outputs)


@torch.library.custom_op("gen_kernels::attention", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: list[int], start: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output and the base-2 logarithm of the softmax's sum, float32 [B, H, Nq]."""
    return _forward(q, k, v, mask, rule, start, scale)


@forward.register_fake
def _(q: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@torch.library.custom_op("gen_kernels::attention_backward", mutates_args=())
def backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int],
    start: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    _backward(q, k, v, mask, out, lse, dout, rule, start, scale, dq, dk, dv)
    return dq, dk, dv


@backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _gradient(ctx: Context, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(*ctx.saved_tensors, dout, *ctx.constants), None, None, None, None


forward.register_autograd(_gradient, setup_context=autograd.save_inputs_and_outputs)
