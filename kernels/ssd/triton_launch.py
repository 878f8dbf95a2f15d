"""Mamba-2's scan by our Triton kernels: as masked attention, whole for short sequences, in chunks for long ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib import triton as _triton
from gen.kernels.ssd.pytorch import by_head, handed_on, in_chunks, joined, quadratic

__all__ = ["chunked", "quadratic_refuses", "refuses", "whole"]

LONGEST = 256  # tokens up to which everything is one chunk, and the tokens of a chunk
WIDEST = 128  # numbers of a head's state, or of its channels


def refuses(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    reason = _triton.unable(x, delta, A, B, C)
    if reason is None and not x.dtype == B.dtype == C.dtype:
        reason = f"mixed dtypes {x.dtype}, {B.dtype} and {C.dtype} of x, B and C"
    if reason is None and max(x.shape[3], B.shape[3]) > WIDEST:
        reason = f"{x.shape[3]} channels and {B.shape[3]} numbers of state to a head; kernels take up to {WIDEST}"
    if reason is None and any(v.stride(3) != 1 and v.shape[3] > 1 for v in (x, B, C)):
        reason = "the numbers of a head do not lie side by side"
    if reason is None and -(-x.shape[1] // _longest()) * x.shape[0] * x.shape[2] > 65535:
        reason = f"{x.shape[0]} samples of {x.shape[2]} heads; a grid has room for 65535 chunks of them"
    return reason


def quadratic_refuses(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    if x.shape[1] > _longest():
        return f"{x.shape[1]} tokens; beyond {_longest()} chunks are less work"
    return refuses(x, delta, A, B, C)


def whole(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return _dual(x, delta, A, B, C, False)


def chunked(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Our kernels within chunks; between them PyTorch's products, in at least float32."""
    parts, chunks = in_chunks(x, delta, A, B, C, _longest()), -(-x.shape[1] // _longest())
    return joined(_dual(*parts, True).transpose(1, 2) + handed_on(chunks, *by_head(*parts)), x)


def _longest() -> int:
    return 16 if _triton.INTERPRETED else LONGEST


def sizes(kind: torch.dtype, n: int, p: int) -> dict[str, Any]:
    widths = {name: max(16, 1 << (size - 1).bit_length()) for name, size in (("BN", n), ("BP", p))}
    if _triton.INTERPRETED:
        return {"BT": 16, **widths}
    wide = max(n, p) > 64
    tokens = 64 if kind != torch.float32 else 16 if wide else 32  # without tensor cores operands lie in registers
    return {"BT": tokens, **widths, "num_warps": 8 if wide else 4, "num_stages": 2}


def _constants(x: Tensor, B: Tensor) -> dict[str, Any]:
    import triton.language as tl

    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # The interpreter multiplies the bits of bfloat16, not its numbers.
    dot = tl.float32 if _triton.INTERPRETED else kinds[x.dtype]
    return {**sizes(x.dtype, B.shape[3], x.shape[3]), "DOT": dot, "PRECISION": "ieee"}


def _steps(*given: Tensor) -> list[int]:
    return [v.stride(dim) for v in given for dim in (0, 1, 2)]


def _sums(delta: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """The running sum of delta A [b, H, T], as two float32: rounded, and what that left."""
    total = (delta.double() * A.double()).mT.cumsum(-1)
    high = total.float()
    return high, (total - high).float()


def _sizes_of(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """T, heads, heads to a group, N and P."""
    heads = x.shape[2]
    return x.shape[1], heads, heads // B.shape[2], B.shape[3], x.shape[3]


@torch.library.custom_op("gen_kernels::ssd", mutates_args=())
def _dual(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, wide: bool) -> Tensor:
    """y [b, T, H, P], of x's dtype or, if wide, float32."""
    from gen.kernels.ssd import triton_kernels as kernels

    y, constants = x.new_empty(x.shape, dtype=torch.float32 if wide else x.dtype), _constants(x, B)
    _triton.launch(
        kernels.forward, (-(-x.shape[1] // constants["BT"]), x.shape[0] * x.shape[2]), x, x, delta, B, C,
        *_sums(delta, A), y, *_steps(x, delta, B, C), *_sizes_of(x, B), **constants,
    )  # fmt: skip
    return y


@_dual.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, wide: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32 if wide else x.dtype)


@torch.library.custom_op("gen_kernels::ssd_backward", mutates_args=())
def _backward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from gen.kernels.ssd import triton_kernels as kernels

    (b, t, h, _), (g, n) = x.shape, B.shape[2:]
    constants = _constants(x, B)
    blocks = -(-t // constants["BT"])
    dx, (high, low), dy = x.new_empty(x.shape), _sums(delta, A), dy.contiguous()
    of_delta, later, within = (x.new_empty(b, h, t, dtype=torch.float32) for _ in range(3))
    db, dc = (x.new_empty(b, h, t, n, dtype=torch.float32) for _ in range(2))
    past = x.new_empty(b, h, blocks, t, dtype=torch.float32)
    given, rest = (x, delta, B, C, high, low, dy), (*_steps(x, delta, B, C), *_sizes_of(x, B))
    _triton.launch(kernels.gradients_out, (blocks, b * h), x, *given, dc, past, *rest, **constants)
    _triton.launch(kernels.gradients_in, (blocks, b * h), x, *given, dx, of_delta, db, later, *rest, **constants)
    _triton.launch(kernels.triangles, (blocks, b * h), x, *given, within, *rest, **constants)
    of_rate = _of_rate(past, later + within, constants["BT"]).mT  # [b, T, H]
    ddelta = (of_delta.mT + of_rate * A.float()).to(delta.dtype)
    dA = (of_rate * delta.float()).sum((0, 1)).to(A.dtype)
    dB, dC = (v.reshape(b, g, h // g, t, n).sum(2).transpose(1, 2).to(B.dtype) for v in (db, dc))
    return dx, ddelta, dA, dB.contiguous(), dC.contiguous()


@_backward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddelta, dA, dB, dC = (v.new_empty(v.shape) for v in (x, delta, A, B, C))
    return dx, ddelta, dA, dB, dC


def _of_rate(past: Tensor, own: Tensor, tile: int) -> Tensor:
    """The gradient of delta_t A [b, H, T] from what the kernels have summed of m_ij: over all i >= t > j.

    past: the pairs whose j lies before t's block, i being in it or after. own [b, H, T]: at t - 1, those whose j is in
    t's block; at the last of a block nobody's.
    """
    b, h, blocks, length = past.shape
    more = blocks * tile - length
    block = torch.arange(blocks, device=past.device)
    past = pad(past, (0, more)).masked_fill(block.repeat_interleave(tile) < block[:, None], 0)  # [b, H, q, T]
    after = past.flip(-1).cumsum(-1).flip(-1).reshape(b, h, blocks, blocks, tile)  # over i, from each on
    first = after.diagonal(dim1=2, dim2=3).mT  # [b, H, q, BT]: t in q
    second = pad(pad(own, (0, more)).reshape(b, h, blocks, tile)[..., :-1], (1, 0))  # from t - 1 to t
    return (first + second).flatten(2)[..., :length]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _gradient(ctx: Any, dy: Tensor) -> Any:
    x, delta, A, B, C = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return *_triton.again(lambda *given: quadratic(*given).to(dy.dtype), (x, delta, A, B, C), dy), None
    return *_backward(x, delta, A, B, C, dy), None


_dual.register_autograd(_gradient, setup_context=_save)
