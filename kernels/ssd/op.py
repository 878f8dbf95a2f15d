"""Mamba-2's scan, with one decay for all of a head's state."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.lib.shapes import check_shapes
from gen.kernels.ssd import pytorch, reference, triton_launch

__all__ = ["ssd"]


def _ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y_t = C_t h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T in every head: [b, T, H, P].

    x: [b, T, H, P]. delta: [b, T, H], positive. A: [H], negative: one decay for all of a head's state [N, P]. B, C:
    [b, T, G, N], each for H / G heads side by side. (Mamba-2, Dao & Gu 2024, arXiv 2405.21060.)
    """
    b, t, h, _ = x.shape
    g, n = B.shape[2:]
    check_shapes("ssd", {"delta": (delta, (b, t, h)), "A": (A, (h,)), "B": (B, (b, t, g, n)), "C": (C, (b, t, g, n))})
    if h % g:
        raise ValueError(f"ssd: {h} heads do not divide into {g} groups")
    return x, delta, A, B, C


ssd = Op(
    "ssd",
    _ssd,
    (
        Backend("triton", triton_launch.quadratic_refuses, triton_launch.whole),
        Backend("triton_chunked", triton_launch.refuses, triton_launch.chunked),
        Backend("quadratic", pytorch.quadratic_refuses, pytorch.quadratic),
        Backend("chunked", pytorch.anything, pytorch.chunked),
        Backend("reference", pytorch.anything, reference.ssd),
    ),
)
