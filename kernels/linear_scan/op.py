"""The linear recurrence h_t = a_t h_(t-1) + b_t."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.linear_scan import pytorch, reference

__all__ = ["linear_scan"]


def _linear_scan(
    a: Tensor, b: Tensor, start: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """h [B, T, ...] with h_t = a_t h_(t-1) + b_t over dimension 1; real or complex.

    a: [B, T, ...], or 1 in place of any size but T's. b: [B, T, ...]. start: h_(-1) [B, ...]; zero without it.
    reverse: h_t = a_(t+1) h_(t+1) + b_t instead, from the last to the first, which is how gradients flow; without a
    start.
    """
    if start is not None and reverse:
        raise ValueError("linear_scan: a scan from the last to the first takes no start")
    if a.is_complex() and not b.is_complex():
        raise ValueError(f"linear_scan: a is {a.dtype} and b {b.dtype}; of a complex a, b must be complex too")
    return a, b, start, reverse


linear_scan = Op(
    "linear_scan",
    _linear_scan,
    (
        Backend("in_order", pytorch.in_order_refuses, pytorch.in_order),
        Backend("in_pairs", pytorch.anything, pytorch.in_pairs),
        Backend("reference", pytorch.anything, reference.linear_scan),
    ),
)
