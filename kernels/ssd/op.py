"""Mamba-2's scan, with one decay for all of a head's state."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.lib.shapes import check_shapes
from gen.kernels.ssd import pytorch, reference, triton_launch
from gen.kernels.ssd.call import SSDCall

__all__ = ["ssd"]


@op(
    Backend("triton", triton_launch.quadratic, triton_launch.quadratic_reason),
    Backend("triton_chunked", triton_launch.chunked, triton_launch.incompatible_reason),
    Backend("quadratic", pytorch.quadratic, pytorch.quadratic_reason),
    Backend("chunked", pytorch.chunked),
    Backend("reference", reference.ssd),
)
def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> SSDCall:
    """Compute y_t = C_t h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T in every head.

    (Mamba-2, Dao & Gu 2024, arXiv 2405.21060.)

    Args:
        x: input [b, T, H, P].
        delta: step sizes [b, T, H], positive.
        A: [H], negative: one decay for all of a head's state [N, P].
        B, C: [b, T, G, N], each for H / G heads side by side.

    Returns:
        y [b, T, H, P].

    Raises:
        ValueError: for other shapes.
    """
    b, t, h, _ = x.shape
    g, n = B.shape[2:]
    check_shapes("ssd", {"delta": (delta, (b, t, h)), "A": (A, (h,)), "B": (B, (b, t, g, n)), "C": (C, (b, t, g, n))})
    if h % g:
        raise ValueError(f"ssd: {h} heads do not divide into {g} groups")
    return SSDCall(x, delta, A, B, C)
