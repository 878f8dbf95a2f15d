"""Mamba's selective scan, in any order of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.lib.shapes import check_shapes
from gen.kernels.selective_scan import chunked, pytorch, reference, triton_launch

__all__ = ["selective_scan"]


def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    order: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, bool]:
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t: [b, T, D], channels last.

    u, delta: [b, T, D], delta positive (bias and softplus are the caller's). A: [D, N], negative. B, C: [b, T, N]. What
    passes by the states, D u, and the gate are the caller's. order: int64 [T], the tokens as the scan visits them, each
    once; from the first to the last without it. reverse: visits them the other way round. Every tensor, y too, has its
    tokens where they were: an order is a way to read, not to lay out. (Mamba, Gu & Dao 2023, arXiv 2312.00752, equation
    2, with the public code's delta B; orders as in ZigMa, Hu et al. 2024, arXiv 2403.13802.)
    """
    b, t, d = u.shape
    wanted = {"delta": (delta, (b, t, d)), "A": (A, (d, A.shape[-1]))}
    wanted |= {name: (v, (b, t, A.shape[-1])) for name, v in (("B", B), ("C", C))}
    check_shapes("selective_scan", wanted if order is None else wanted | {"order": (order, (t,))})
    if order is not None and order.dtype != torch.int64:
        raise ValueError(f"selective_scan: order is {order.dtype}; it must be torch.int64")
    return u, delta, A, B, C, order, reverse


selective_scan = Op(
    "selective_scan",
    _selective_scan,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("chunks", chunked.refuses, chunked.run),
        Backend("whole", chunked.anything, pytorch.run),
        Backend("reference", chunked.anything, reference.selective_scan),
    ),
)
