"""Mamba-2's scan by our Triton kernels: as masked attention, whole for short sequences, in chunks for long ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context, double_backward, save_inputs
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.ssd import pytorch
from gen.kernels.ssd.call import SSDCall

__all__ = ["chunked", "incompatible_reason", "quadratic", "quadratic_reason", "sizes"]

LONGEST = 16 if INTERPRETED else 256  # tokens up to which everything is one chunk, and the tokens of a chunk
WIDEST = 128  # numbers of a head's state, or of its channels


def incompatible_reason(call: SSDCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    x, _, _, B, C = call
    reason = triton_support.incompatible_reason(*call) or triton_support.mixed_dtypes_reason(x, B, C)
    if reason is None and max(x.shape[3], B.shape[3]) > WIDEST:
        return f"{x.shape[3]} channels and {B.shape[3]} numbers of state to a head; kernels take up to {WIDEST}"
    reason = reason or triton_support.stride_reason(x, B, C)
    return reason or triton_support.grid_reason(-(-x.shape[1] // LONGEST) * x.shape[0] * x.shape[2], "chunks of heads")


def quadratic_reason(call: SSDCall) -> str | None:
    """Return why our kernels cannot compute the call as one chunk, or why they should not, or None."""
    length = call.x.shape[1]
    return f"{length} tokens; beyond {LONGEST} chunks are less work" if length > LONGEST else incompatible_reason(call)


def quadratic(call: SSDCall) -> Tensor:
    """Compute all tokens as one masked attention."""
    return _masked_attention(*call, False)


def chunked(call: SSDCall) -> Tensor:
    """Compute our kernels within chunks; between them PyTorch's products, in at least float32."""
    parts, chunks = pytorch.in_chunks(call, LONGEST), -(-call.x.shape[1] // LONGEST)
    within = _masked_attention(*parts, True).transpose(1, 2)
    return pytorch.join_chunks(within + pytorch.from_earlier_chunks(chunks, pytorch.by_head(parts)), call.x)


def sizes(kind: torch.dtype, n: int, p: int) -> dict[str, int]:
    """Return tiles and warps."""
    widths = {name: triton_support.power_of_2(size, 16) for name, size in (("BN", n), ("BP", p))}
    if INTERPRETED:
        return {"BT": 16, **widths}
    wide = max(n, p) > 64
    tokens = 64 if kind != torch.float32 else 16 if wide else 32  # without tensor cores operands lie in registers
    return {"BT": tokens, **widths, "num_warps": 8 if wide else 4, "num_stages": 2}


def _strides(*given: Tensor) -> list[int]:
    return [v.stride(dim) for v in given for dim in (0, 1, 2)]


def _sums(delta: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running sum of delta A [b, H, T], as two float32: rounded, and what that left."""
    total = (delta.double() * A.double()).mT.cumsum(-1)
    high = total.float()
    return high, (total - high).float()


def _sizes_of(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """Return T, heads, heads to a group, N and P."""
    heads = x.shape[2]
    return x.shape[1], heads, heads // B.shape[2], B.shape[3], x.shape[3]


@torch.library.custom_op("gen_kernels::ssd", mutates_args=())
def _masked_attention(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, wide: bool) -> Tensor:
    """Return y [b, T, H, P], of x's dtype or, if wide, float32."""
    from gen.kernels.ssd import triton_kernels

    y, size = x.new_empty(x.shape, dtype=torch.float32 if wide else x.dtype), sizes(x.dtype, B.shape[3], x.shape[3])
    triton_support.launch(
        triton_kernels.forward, (-(-x.shape[1] // size["BT"]), x.shape[0] * x.shape[2]), x, x, delta, B, C,
        *_sums(delta, A), y, *_strides(x, delta, B, C), *_sizes_of(x, B),
        **size, **triton_support.dot_constants(x.dtype),
    )  # fmt: skip
    return y


@_masked_attention.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, wide: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32 if wide else x.dtype)


@torch.library.custom_op("gen_kernels::ssd_backward", mutates_args=())
def _backward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from gen.kernels.ssd import triton_kernels

    (b, t, h, p), (g, n) = x.shape, B.shape[2:]
    size = sizes(x.dtype, n, p)
    blocks = -(-t // size["BT"])
    dx, (high, low), dy = x.new_empty(x.shape), _sums(delta, A), dy.contiguous()
    of_delta, later, within = (x.new_empty(b, h, t, dtype=torch.float32) for _ in range(3))
    db, dc = (x.new_empty(b, h, t, n, dtype=torch.float32) for _ in range(2))
    past = x.new_empty(b, h, blocks, t, dtype=torch.float32)
    given, rest = (x, delta, B, C, high, low, dy), (*_strides(x, delta, B, C), *_sizes_of(x, B))
    for kernel, outputs in (
        (triton_kernels.gradients_out, (dc, past)),
        (triton_kernels.gradients_in, (dx, of_delta, db, later)),
        (triton_kernels.triangles, (within,)),
    ):
        constants = {**size, **triton_support.dot_constants(x.dtype)}
        triton_support.launch(kernel, (blocks, b * h), x, *given, *outputs, *rest, **constants)
    of_rate = _rate_gradient(past, later + within, size["BT"]).mT  # [b, T, H]
    ddelta = (of_delta.mT + of_rate * A.float()).to(delta.dtype)
    dA = (of_rate * delta.float()).sum((0, 1)).to(A.dtype)
    dB, dC = (v.reshape(b, g, h // g, t, n).sum(2).transpose(1, 2).to(B.dtype) for v in (db, dc))
    return dx, ddelta, dA, dB.contiguous(), dC.contiguous()


@_backward.register_fake
def _(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddelta, dA, dB, dC = (v.new_empty(v.shape) for v in given[:5])
    return dx, ddelta, dA, dB, dC


def _rate_gradient(past: Tensor, own: Tensor, tile: int) -> Tensor:
    """Return the gradient of delta_t A [b, H, T] from what the kernels have summed of m_ij: over all i >= t > j.

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


def _gradient(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # the gradient will be differentiated too

        def run(*given: Tensor) -> Tensor:
            return pytorch.quadratic(SSDCall(*given)).to(dy.dtype)

        return *double_backward(run, ctx.saved_tensors, dy), None
    return *_backward(*ctx.saved_tensors, dy), None


_masked_attention.register_autograd(_gradient, setup_context=save_inputs)
