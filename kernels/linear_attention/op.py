"""Attention whose weights are a softmax of each channel over the tokens: all to all, in linear time."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.linear_attention import pytorch, reference, triton_launch
from gen.kernels.linear_attention.call import LinearAttentionCall

__all__ = ["linear_attention"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("torch", pytorch.run),
    Backend("reference", reference.linear_attention),
)
def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> LinearAttentionCall:
    """Compute q_t S with S = sum_s softmax_s(k) v_s^T, the softmax over the tokens, of each channel by itself.

    (LightNet, Qin et al. 2024, arXiv 2405.21022.)

    Args:
        q, k: [B, H, T, d].
        v: [B, H, T, e].

    Returns:
        [B, H, T, e].

    Raises:
        ValueError: for other shapes.
    """
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        given = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"linear_attention: q, k, v are {given}; they must be twice [B, H, T, d], and [B, H, T, e]")
    return LinearAttentionCall(q, k, v)
