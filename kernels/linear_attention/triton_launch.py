"""Linear attention by our Triton kernels, for what passes over k and v, and PyTorch's products, for what reads q."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import autograd, triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.linear_attention.call import LinearAttentionCall

__all__ = ["incompatible_reason", "run"]

TOKENS = 16 if INTERPRETED else 64  # of a tile


def incompatible_reason(call: LinearAttentionCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    q, k, v = call
    reason = triton_support.incompatible_reason(q, k, v) or triton_support.mixed_dtypes_reason(q, k, v)
    if reason is not None:
        return reason
    if q.dtype == torch.float32 and not INTERPRETED:
        return "a head's state does not fit the registers beside products of float32"
    if max(k.shape[-1], v.shape[-1]) > 128:
        return f"head dims {k.shape[-1]} and {v.shape[-1]}; kernels take up to 128"
    return triton_support.stride_reason(k, v)


def run(call: LinearAttentionCall) -> Tensor:
    """Compute the state by our kernels and what q reads of it by PyTorch."""
    return _attention(*call)[0]


def _constants(k: Tensor, v: Tensor) -> dict[str, object]:
    kd, ve = (triton_support.power_of_2(x.shape[-1], 16) for x in (k, v))
    warps = {} if INTERPRETED else {"num_warps": 8}
    return {"KD": kd, "VE": ve, "BT": TOKENS, **triton_support.dot_constants(k.dtype), **warps}


@torch.library.custom_op("gen_kernels::linear_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and in float32 the state [B, H, d, e] and k's log sum exp over the tokens [B, H, d]."""
    from gen.kernels.linear_attention import triton_kernels

    (b, h, n, d), e = k.shape, v.shape[-1]
    splits = max(1, min(-(-n // TOKENS), 2 if INTERPRETED else -(-264 // (b * h))))
    per_split = -(-n // (splits * TOKENS)) * TOKENS
    top, total = (k.new_empty(b * h, splits, d, dtype=torch.float32) for _ in range(2))
    parts = k.new_empty(b * h, splits, d, e, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.states, (b * h, splits), k,
        k, v, top, total, parts, *k.stride()[:3], *v.stride()[:3], h, n, d, e, per_split, **_constants(k, v),
    )  # fmt: skip
    largest = top.amax(1, keepdim=True)
    decay = (top - largest).exp()
    mass = (total * decay).sum(1)
    state = ((parts * decay[..., None]).sum(1) / mass[..., None]).reshape(b, h, d, e)
    return q @ state.to(q.dtype), state, (largest[:, 0] + mass.log()).reshape(b, h, d)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (b, h, n, d), e = k.shape, v.shape[-1]
    state, lse = (q.new_empty(*shape, dtype=torch.float32) for shape in ((b, h, d, e), (b, h, d)))
    return q.new_empty(b, h, n, e), state, lse


@torch.library.custom_op("gen_kernels::linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from gen.kernels.linear_attention import triton_kernels

    (b, h, n, d), e = k.shape, v.shape[-1]
    dq, dstate = dout @ state.to(q.dtype).mT, (q.mT @ dout).contiguous()
    dots = (dstate * state).sum(-1)  # float32
    dk, dv = k.new_empty(b, h, n, d), v.new_empty(b, h, n, e)
    triton_support.launch(
        triton_kernels.gradients, (b * h, -(-n // TOKENS)), k,
        k, v, lse, dstate, dots, dk, dv, *k.stride()[:3], *v.stride()[:3], h, n, d, e, **_constants(k, v),
    )  # fmt: skip
    return dq, dk, dv


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _gradient(ctx: Context, dout: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(*ctx.saved_tensors, dout)


_attention.register_autograd(_gradient, setup_context=autograd.save_inputs)
