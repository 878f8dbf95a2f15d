"""Attention by our Triton kernels: the custom op, its gradient, and the lists of tiles that a rule leaves to visit."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.backends import _triton
from gen.kernels.rules import KINDS, Bidirectional, Codes, Rule, decode, encode

__all__ = ["Visits", "refuses", "run", "sizes", "split", "visits"]

Visits = tuple[Tensor, Tensor, Tensor]  # tiles [n, m], and how many of them are seen whole, and in part: int32 [n]


def refuses(qkv: Tensor, rule: Rule, scale: float) -> str | None:
    reason = _triton.unable(qkv)
    if reason is not None:
        return reason
    if not isinstance(rule, KINDS):
        return f"{type(rule).__name__} has no codes"
    if not 16 <= qkv.shape[-1] <= 128:
        return f"head dim {qkv.shape[-1]}; kernels take 16 to 128"
    if qkv.shape[0] * qkv.shape[3] > 65535:
        return f"{qkv.shape[0] * qkv.shape[3]} heads in all; a grid has room for 65535"
    if qkv.stride(-1) != 1:
        return "the numbers of a head do not lie side by side"
    return None


def run(qkv: Tensor, rule: Rule, scale: float) -> Tensor:
    out: Tensor = _attention(qkv, encode(rule), scale)[0]
    return out


def split(dim: int) -> tuple[int, int]:
    """A head dim in two powers of two that hold it: 72 -> (64, 16); the second is 0 where one is enough."""
    first = 1 << (dim.bit_length() - 1)
    rest = dim - first
    if rest == 0:
        return first, 0
    second = max(16, 1 << (rest - 1).bit_length())
    return (2 * first, 0) if second >= first else (first, second)


def visits(codes: Codes, bm: int, bn: int) -> tuple[Visits, Visits]:
    """For every tile of bm queries the tiles of bn keys it sees, whole ones first; and for the keys the queries.

    A tile that no query of another may see can still be visited where codes of its own overlap as intervals: it is
    masked like all that are seen in part.
    """
    level, reach, own = codes
    (low_level, high_level), (low_reach, high_reach) = _range(level, bn), _range(reach, bm)
    low_q, high_q, low_k, high_k = *_range(own, bm, own >= 0), *_range(own, bn, own >= 0)
    all_q, all_k = _range(own, bm)[0], _range(own, bn)[0]
    near = (low_q[:, None] <= high_k) & (low_k <= high_q[:, None])
    seen = (low_level <= high_reach[:, None]) | near
    one = (low_q == high_q) & (all_q >= 0), (low_k == high_k) & (all_k >= 0)
    whole = (high_level <= low_reach[:, None]) | (one[0][:, None] & one[1] & (low_q[:, None] == low_k))
    n = len(level)
    ends_q, ends_k = (torch.arange(len(low_reach)) + 1) * bm <= n, (torch.arange(len(low_level)) + 1) * bn <= n
    whole &= ends_q[:, None] & ends_k  # ragged tiles are masked
    return _listed(seen, whole), _listed(seen.mT, whole.mT)


def _range(values: Tensor, size: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest of each run of `size`; an empty interval where none is valid."""
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    limits = torch.iinfo(values.dtype)

    def runs(filled: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(filled, (0, -len(values) % size), value=fill).reshape(-1, size)

    low = runs(values.where(valid, limits.max), limits.max).amin(1)
    return low, runs(values.where(valid, limits.min), limits.min).amax(1)


def _listed(seen: Tensor, whole: Tensor) -> Visits:
    rank = (~seen).int() * 2 + (~whole).int()  # 0 whole, 1 in part, 2 and 3 not at all
    tiles = rank.argsort(dim=1, stable=True).int()
    counts = (seen & whole).sum(1).int(), (seen & ~whole).sum(1).int()
    return tiles.contiguous(), *counts


@cache
def _plan(rule: Rule, n: int, bm: int, bn: int, device: torch.device) -> tuple[Codes, Visits, Visits]:
    codes: Codes = rule.codes(n)  # type: ignore[attr-defined]
    by_query, by_key = visits(codes, bm, bn)
    level, reach, own = (v.to(device) for v in codes)
    return (level, reach, own), _moved(by_query, device), _moved(by_key, device)


def _moved(given: Visits, device: torch.device) -> Visits:
    tiles, whole, some = (v.to(device) for v in given)
    return tiles, whole, some


def _constants(qkv: Tensor, rule: Rule) -> dict[str, Any]:
    import triton.language as tl

    d0, d1 = split(qkv.shape[-1])
    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # The interpreter multiplies the bits of bfloat16, not its numbers.
    dot = tl.float32 if _triton.INTERPRETED else kinds[qkv.dtype]
    ruled = not isinstance(rule, Bidirectional)
    return {"D": qkv.shape[-1], "D0": d0, "D1": d1, "RULED": ruled, "DOT": dot, "PRECISION": "ieee"}


def sizes(dtype: torch.dtype, backward: bool) -> dict[str, int]:
    """Tiles and warps, from register and shared-memory counts of compiled kernels, not from timings."""
    if _triton.INTERPRETED:
        return {"BM": 16, "BN": 32}
    if dtype == torch.float32:
        return {"BM": 16 if backward else 32, "BN": 16, "num_warps": 4, "num_stages": 1}
    if backward:
        return {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}
    return {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 2}


@torch.library.custom_op("gen_kernels::attention", mutates_args=())
def _attention(qkv: Tensor, rule: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """The output [B, N, H, d], and the base-2 logarithm of the softmax's sum, float32 [B, H, N]."""
    from gen.kernels.backends import attention_kernels as kernels

    b, n, _, h, d = qkv.shape
    out, lse = qkv.new_empty(b, n, h, d), qkv.new_empty(b, h, n, dtype=torch.float32)
    size = sizes(qkv.dtype, backward=False)
    codes, by_query, _ = _plan(decode(rule), n, size["BM"], size["BN"], qkv.device)
    grid = (len(by_query[0]), b * h)
    _triton.launch(
        kernels.forward, grid, qkv,
        qkv, out, lse, *codes, *by_query, *qkv.stride()[:4], n, h, by_query[0].shape[1], scale,
        **_constants(qkv, decode(rule)), **size,
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _(qkv: Tensor, rule: list[int], scale: float) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h, d), qkv.new_empty(b, h, n, dtype=torch.float32)


@torch.library.custom_op("gen_kernels::attention_backward", mutates_args=())
def _backward(qkv: Tensor, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int], scale: float) -> Tensor:
    from gen.kernels.backends import attention_kernels as kernels

    b, n, _, h, d = qkv.shape
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dots, dqkv = torch.empty_like(lse), qkv.new_empty(b, n, 3, h, d)
    size, constants = sizes(qkv.dtype, backward=True), _constants(qkv, decode(rule))
    codes, by_query, by_key = _plan(decode(rule), n, size["BM"], size["BN"], qkv.device)
    width = constants["D0"] if constants["D1"] == 0 else 2 * constants["D0"]
    _triton.launch(
        kernels.row_dots,
        (len(by_query[0]), b * h),
        qkv,
        out,
        dout,
        dots,
        *dout.stride()[:3],
        n,
        h,
        D=d,
        WIDTH=width,
        BM=size["BM"],
    )
    for kernel, listed in ((kernels.backward_dkv, by_key), (kernels.backward_dq, by_query)):
        _triton.launch(
            kernel, (len(listed[0]), b * h), qkv,
            qkv, dout, lse, dots, dqkv, *codes, *listed, *qkv.stride()[:4], *dout.stride()[:3],
            n, h, listed[0].shape[1], scale, **constants, **size,
        )  # fmt: skip
    return dqkv


@_backward.register_fake
def _(qkv: Tensor, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int], scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.rule, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor, None, None]:
    qkv, out, lse = ctx.saved_tensors
    return _backward(qkv, out, lse, dout, ctx.rule, ctx.scale), None, None


_attention.register_autograd(_gradient, setup_context=_save)
