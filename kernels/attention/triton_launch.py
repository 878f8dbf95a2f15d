"""Attention by our Triton kernels: the custom ops, their gradients, and the lists of tiles that a rule leaves to visit.

There are two ops over one set of kernels. That of packed q, k and v writes their gradients into one packed tensor, as
the product behind it wants them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.attention.rules import KINDS, Bidirectional, Codes, Rule, decode, encode
from gen.kernels.lib import triton as _triton
from gen.kernels.rope import Pairs, prepared

__all__ = ["Visits", "refuses", "refuses_qkv", "run", "run_qkv", "sizes", "split", "visits"]

Visits = tuple[Tensor, Tensor, Tensor]  # tiles [n, m], and how many of them are seen whole, and in part: int32 [n]
Plan = tuple[tuple[Tensor, Tensor, Tensor, Tensor], Visits, Visits]


def refuses(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> str | None:
    return _unable(rule, qkv.shape[0] * qkv.shape[3], qkv)


def run(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: Pairs,
) -> Tensor:
    if q_gain is None and k_gain is None and cos is None:
        return _attention(qkv, encode(rule), scale)[0]
    q, k, v = prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs)
    return run_qkv(q, k, v, rule, scale, None, 0)


def refuses_qkv(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int
) -> str | None:
    reason = _unable(rule, q.shape[0] * q.shape[2], q, k, v)
    if reason is None and seen is not None:
        reason = _triton.unable(q, seen)
    if reason is None and not q.dtype == k.dtype == v.dtype:
        reason = f"mixed dtypes {q.dtype}, {k.dtype} and {v.dtype}"
    return reason


def run_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    return _attention_qkv(q, k, v, seen, encode(rule), first, scale)[0]


def _unable(rule: Rule, heads: int, *given: Tensor) -> str | None:
    reason = _triton.unable(*given)
    if reason is not None:
        return reason
    if not isinstance(rule, KINDS):
        return f"{type(rule).__name__} has no codes"
    if not 16 <= given[0].shape[-1] <= 128:
        return f"head dim {given[0].shape[-1]}; kernels take 16 to 128"
    if heads > 65535:
        return f"{heads} heads in all; a grid has room for 65535"
    if any(t.stride(-1) != 1 for t in given):
        return "the numbers of a head do not lie side by side"
    return None


def split(dim: int) -> tuple[int, int]:
    """A head dim in two powers of two that hold it: 72 -> (64, 16); the second is 0 where one is enough."""
    first = 1 << (dim.bit_length() - 1)
    rest = dim - first
    if rest == 0:
        return first, 0
    second = max(16, 1 << (rest - 1).bit_length())
    return (2 * first, 0) if second >= first else (first, second)


def visits(keys: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], bm: int, bn: int) -> tuple[Visits, Visits]:
    """For every tile of bm queries the tiles of bn keys it sees, whole ones first; and for the keys the queries.

    keys: level and own of each; queries: reach and own. A tile that no query of another may see can still be visited
    where codes of its own overlap as intervals: it is masked like all that are seen in part.
    """
    (level, own_k), (reach, own_q) = keys, queries
    (low_level, high_level), (low_reach, high_reach) = _range(level, bn), _range(reach, bm)
    low_q, high_q, low_k, high_k = *_range(own_q, bm, own_q >= 0), *_range(own_k, bn, own_k >= 0)
    all_q, all_k = _range(own_q, bm)[0], _range(own_k, bn)[0]
    near = (low_q[:, None] <= high_k) & (low_k <= high_q[:, None])
    seen = (low_level <= high_reach[:, None]) | near
    one = (low_q == high_q) & (all_q >= 0), (low_k == high_k) & (all_k >= 0)
    whole = (high_level <= low_reach[:, None]) | (one[0][:, None] & one[1] & (low_q[:, None] == low_k))
    ends_q, ends_k = ((torch.arange(len(v)) + 1) * size for v, size in ((low_reach, bm), (low_level, bn)))
    whole &= (ends_q <= len(reach))[:, None] & (ends_k <= len(level))  # ragged tiles are masked
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


@lru_cache(maxsize=256)
def _plan(rule: Rule, nq: int, nk: int, first: int, masked: bool, bm: int, bn: int, device: torch.device) -> Plan:
    """The codes of keys and queries, level, reach and both own, and who visits whom; nothing whole under a mask.

    Kept for the last few shapes: a cache of keys and values has another with every step.
    """
    codes: Codes = rule.codes(max(nk, first + nq))  # type: ignore[attr-defined]
    level, reach, own_k, own_q = (
        codes[0][:nk],
        codes[1][first : first + nq],
        codes[2][:nk],
        codes[2][first : first + nq],
    )
    by_query, by_key = visits((level, own_k), (reach, own_q), bm, bn)
    # Copies: what begins in the middle of a tensor may not lie as kernels read it fastest.
    level, reach, own_k, own_q = (v.clone().to(device) for v in (level, reach, own_k, own_q))
    return (level, reach, own_k, own_q), _moved(by_query, masked, device), _moved(by_key, masked, device)


def _moved(given: Visits, masked: bool, device: torch.device) -> Visits:
    tiles, whole, some = given
    if masked:
        whole, some = torch.zeros_like(whole), whole + some
    return tiles.to(device), whole.to(device), some.to(device)


def _constants(q: Tensor, k: Tensor, rule: list[int], seen: Tensor | None) -> dict[str, Any]:
    import triton.language as tl

    d0, d1 = split(q.shape[-1])
    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return {
        "D": q.shape[-1],
        "D0": d0,
        "D1": d1,
        "GROUP": q.shape[2] // k.shape[2],
        "RULED": not isinstance(decode(rule), Bidirectional),
        "MASKED": seen is not None,
        # The interpreter multiplies the bits of bfloat16, not its numbers.
        "DOT": tl.float32 if _triton.INTERPRETED else kinds[q.dtype],
        "PRECISION": "ieee",
    }


def sizes(dtype: torch.dtype, backward: bool, masked: bool = False) -> dict[str, int]:
    """Tiles and warps, from register and shared-memory counts of compiled kernels, not from timings."""
    if _triton.INTERPRETED:
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


def _steps(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> list[int]:
    """Of samples, places and heads of q, of k and of v; of samples, queries and keys of the mask, 0 where all share."""
    steps = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    if seen is None:
        return [*steps, 0, 0, 0]
    return [*steps, *(0 if size == 1 else step for size, step in zip(seen.shape, seen.stride(), strict=True))]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, rule: list[int], first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output [B, Nq, H, d], and the base-2 logarithm of the softmax's sum, float32 [B, H, Nq]."""
    from gen.kernels.attention import triton_kernels as kernels

    (b, nq, h, _), nk = q.shape, k.shape[1]
    out, lse = _made(q)
    size = sizes(q.dtype, False, seen is not None)
    codes, by_query, _ = _plan(decode(rule), nq, nk, first, seen is not None, size["BM"], size["BN"], q.device)
    _triton.launch(
        kernels.forward, (len(by_query[0]), b * h), q,
        q, k, v, out, lse, *codes, None if seen is None else seen.view(torch.int8), *by_query,
        *_steps(q, k, v, seen), nq, nk, h, by_query[0].shape[1], scale, **_constants(q, k, rule, seen), **size,
    )  # fmt: skip
    return out, lse


def _made(q: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, unwritten."""
    b, n, h, d = q.shape
    return q.new_empty(b, n, h, d), q.new_empty(b, h, n, dtype=torch.float32)


def _backward(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor,
    rule: list[int], first: int, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Writes the gradients; dk and dv lie alike."""
    from gen.kernels.attention import triton_kernels as kernels

    (b, nq, h, d), (_, nk, h_k, _) = q.shape, k.shape
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dots, steps = torch.empty_like(lse), dout.stride()[:3]
    size, constants = sizes(q.dtype, True, seen is not None), _constants(q, k, rule, seen)
    codes, by_query, by_key = _plan(decode(rule), nq, nk, first, seen is not None, size["BM"], size["BN"], q.device)
    width = constants["D0"] if constants["D1"] == 0 else 2 * constants["D0"]
    grid = (len(by_query[0]), b * h)
    _triton.launch(kernels.row_dots, grid, q, out, dout, dots, *steps, nq, h, D=d, WIDTH=width, BM=size["BM"])
    mask = None if seen is None else seen.view(torch.int8)
    for kernel, heads, listed, to in (
        (kernels.backward_dkv, h_k, by_key, (dk, dv)),
        (kernels.backward_dq, h, by_query, (dq,)),
    ):
        _triton.launch(
            kernel, (len(listed[0]), b * heads), q,
            q, k, v, dout, lse, dots, *to, *codes, mask, *listed, *_steps(q, k, v, seen), *steps, *to[0].stride()[:3],
            nq, nk, h, listed[0].shape[1], scale, **constants, **size,
        )  # fmt: skip


@torch.library.custom_op("gen_kernels::attention", mutates_args=())
def _attention(qkv: Tensor, rule: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """The output and the logarithm of the sum, of packed q, k and v."""
    q, k, v = qkv.unbind(2)
    return _forward(q, k, v, None, rule, 0, scale)


@_attention.register_fake
def _(qkv: Tensor, rule: list[int], scale: float) -> tuple[Tensor, Tensor]:
    return _made(qkv[:, :, 0])


@torch.library.custom_op("gen_kernels::attention_backward", mutates_args=())
def _attention_backward(qkv: Tensor, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int], scale: float) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), dqkv.unbind(2)
    _backward(q, k, v, None, out, lse, dout, rule, 0, scale, dq, dk, dv)
    return dqkv


@_attention_backward.register_fake
def _(qkv: Tensor, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int], scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.rule, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor, None, None]:
    qkv, out, lse = ctx.saved_tensors
    return _attention_backward(qkv, out, lse, dout, ctx.rule, ctx.scale), None, None


_attention.register_autograd(_gradient, setup_context=_save)


@torch.library.custom_op("gen_kernels::attention_qkv", mutates_args=())
def _attention_qkv(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, rule: list[int], first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output and the logarithm of the sum."""
    return _forward(q, k, v, seen, rule, first, scale)


@_attention_qkv.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, rule: list[int], first: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _made(q)


@torch.library.custom_op("gen_kernels::attention_qkv_backward", mutates_args=())
def _attention_qkv_backward(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int],
    first: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    _backward(q, k, v, seen, out, lse, dout, rule, first, scale, dq, dk, dv)
    return dq, dk, dv


@_attention_qkv_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor, rule: list[int],
    first: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_qkv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seen, ctx.rule, ctx.first, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, seen, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient_qkv(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_qkv_backward(*ctx.saved_tensors, dout, ctx.rule, ctx.first, ctx.scale), None, None, None, None


_attention_qkv.register_autograd(_gradient_qkv, setup_context=_save_qkv)
