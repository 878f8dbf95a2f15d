"""Linear attention by our Triton kernels, for what passes over k and v, and PyTorch's products, for what reads q."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton

__all__ = ["refuses", "run"]


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    reason = _triton.unable(q, k, v)
    if reason is None and not q.dtype == k.dtype == v.dtype:
        reason = f"mixed dtypes {q.dtype}, {k.dtype} and {v.dtype}"
    if reason is None and q.dtype == torch.float32 and not _triton.INTERPRETED:
        reason = "a head's state does not fit the registers beside products of float32"
    if reason is None and max(k.shape[-1], v.shape[-1]) > 128:
        reason = f"head dims {k.shape[-1]} and {v.shape[-1]}; kernels take up to 128"
    if reason is None and (k.stride(-1) != 1 or v.stride(-1) != 1):
        reason = "the numbers of a head do not lie side by side"
    return reason


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attention(q, k, v)[0]


def _constants(k: Tensor, v: Tensor) -> dict[str, Any]:
    import triton.language as tl

    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    widths = [max(16, 1 << (x.shape[-1] - 1).bit_length()) for x in (k, v)]
    # The interpreter multiplies the bits of bfloat16, not its numbers.
    dot = tl.float32 if _triton.INTERPRETED else kinds[k.dtype]
    warps = {} if _triton.INTERPRETED else {"num_warps": 8}
    return {"KD": widths[0], "VE": widths[1], "BT": _tokens(), "DOT": dot, "PRECISION": "ieee", **warps}


def _tokens() -> int:
    return 16 if _triton.INTERPRETED else 64


@torch.library.custom_op("gen_kernels::linear_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output [B, H, T, e], the state [B, H, d, e] and k's log sum exp over the tokens [B, H, d], both float32."""
    from gen.kernels.linear_attention import triton_kernels as kernels

    b, h, n, d = k.shape
    e = v.shape[-1]
    splits = max(1, min(-(-n // _tokens()), 2 if _triton.INTERPRETED else -(-264 // (b * h))))
    per_split = -(-n // (splits * _tokens())) * _tokens()
    top, total = (k.new_empty(b * h, splits, d, dtype=torch.float32) for _ in range(2))
    parts = k.new_empty(b * h, splits, d, e, dtype=torch.float32)
    _triton.launch(
        kernels.states,
        (b * h, splits),
        k,
        k,
        v,
        top,
        total,
        parts,
        *k.stride()[:3],
        *v.stride()[:3],
        h,
        n,
        d,
        e,
        per_split,
        **_constants(k, v),
    )
    largest = top.amax(1, keepdim=True)
    kept = (top - largest).exp()
    mass = (total * kept).sum(1)
    state = ((parts * kept[..., None]).sum(1) / mass[..., None]).reshape(b, h, d, e)
    return q @ state.to(q.dtype), state, (largest[:, 0] + mass.log()).reshape(b, h, d)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, h, n, d = k.shape
    return (
        q.new_empty(b, h, n, v.shape[-1]),
        q.new_empty(b, h, d, v.shape[-1], dtype=torch.float32),
        q.new_empty(b, h, d, dtype=torch.float32),
    )


@torch.library.custom_op("gen_kernels::linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from gen.kernels.linear_attention import triton_kernels as kernels

    b, h, n, d = k.shape
    e = v.shape[-1]
    dq, dstate = dout @ state.to(q.dtype).mT, (q.mT @ dout).contiguous()
    dots = (dstate * state).sum(-1)  # float32
    dk, dv = k.new_empty(b, h, n, d), v.new_empty(b, h, n, e)
    _triton.launch(
        kernels.gradients,
        (b * h, -(-n // _tokens())),
        k,
        k,
        v,
        lse,
        dstate,
        dots,
        dk,
        dv,
        *k.stride()[:3],
        *v.stride()[:3],
        h,
        n,
        d,
        e,
        **_constants(k, v),
    )
    return dq, dk, dv


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, state: Tensor, lse: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, dout: Tensor, *unused: Any) -> Any:
    return _backward(*ctx.saved_tensors, dout)


_attention.register_autograd(_gradient, setup_context=_save)
