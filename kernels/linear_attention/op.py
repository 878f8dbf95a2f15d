"""Attention whose weights are a softmax of each channel over the tokens: all tokens see all, in linear time."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.linear_attention import pytorch, reference, triton_launch

__all__ = ["linear_attention"]


def _linear_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q_t S with S = sum_s softmax_s(k) v_s^T: q, k [B, H, T, d], v [B, H, T, e] -> [B, H, T, e].

    The softmax is over the tokens, of each of the d channels by itself (LightNet, Qin et al. 2024, arXiv 2405.21022).
    """
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        given = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"linear_attention: q, k, v are {given}; they must be twice [B, H, T, d], and [B, H, T, e]")
    return q, k, v


linear_attention = Op(
    "linear_attention",
    _linear_attention,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("torch", pytorch.refuses, pytorch.run),
        Backend("reference", pytorch.refuses, reference.linear_attention),
    ),
)
