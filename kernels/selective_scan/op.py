"""Mamba's selective scan, in any order of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.lib.shapes import check_shapes
from gen.kernels.selective_scan import chunked, pytorch, reference, triton_launch
from gen.kernels.selective_scan.call import SelectiveScanCall

__all__ = ["selective_scan"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("chunked", chunked.run, chunked.incompatible_reason),
    Backend("torch", pytorch.run),
    Backend("reference", reference.selective_scan),
)
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    order: Tensor | None = None,
    reverse: bool = False,
) -> SelectiveScanCall:
    """Compute y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, channels last.

    delta's bias and softplus, the skip D u and the gate are the caller's. Every tensor, y too, keeps its tokens where
    they are: an order changes how they are read, not how they are laid out. (Mamba, Gu & Dao 2023, arXiv 2312.00752,
    equation 2, with the public code's delta B; orders as in ZigMa, Hu et al. 2024, arXiv 2403.13802.)

    Args:
        u: input [b, T, D].
        delta: step sizes [b, T, D], positive.
        A: [D, N], negative.
        B, C: [b, T, N].
        order: int64 [T], the tokens as the scan visits them, each once; by default from the first to the last.
        reverse: visits them the other way round.

    Returns:
        y [b, T, D].

    Raises:
        ValueError: for other shapes, and for an order of another dtype.
    """
    b, t, d = u.shape
    wanted = {"delta": (delta, (b, t, d)), "A": (A, (d, A.shape[-1]))}
    wanted |= {name: (v, (b, t, A.shape[-1])) for name, v in (("B", B), ("C", C))}
    check_shapes("selective_scan", wanted if order is None else wanted | {"order": (order, (t,))})
    if order is not None and order.dtype != torch.int64:
        raise ValueError(f"selective_scan: order is {order.dtype}; it must be torch.int64")
    return SelectiveScanCall(u, delta, A, B, C, order, reverse)
