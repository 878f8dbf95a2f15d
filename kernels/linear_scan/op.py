"""The linear recurrence h_t = a_t h_(t-1) + b_t."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.linear_scan import pytorch, reference
from gen.kernels.linear_scan.call import LinearScanCall

__all__ = ["linear_scan"]


@op(
    Backend("sequential", pytorch.sequential, pytorch.sequential_reason),
    Backend("associative", pytorch.associative),
    Backend("reference", reference.linear_scan),
)
def linear_scan(a: Tensor, b: Tensor, start: Tensor | None = None, reverse: bool = False) -> LinearScanCall:
    """Compute h_t = a_t h_(t-1) + b_t over dimension 1; real or complex.

    Args:
        a: [B, T, ...], or 1 instead of any size but T's.
        b: [B, T, ...].
        start: h_(-1) [B, ...]; zero by default.
        reverse: h_t = a_(t+1) h_(t+1) + b_t instead, from the last to the first, which is how gradients flow.

    Returns:
        h [B, T, ...].

    Raises:
        ValueError: for a start in reverse, and for a complex a with a real b.
    """
    if start is not None and reverse:
        raise ValueError("linear_scan: a scan from the last to the first takes no start")
    if a.is_complex() and not b.is_complex():
        raise ValueError(f"linear_scan: a is {a.dtype} and b {b.dtype}; of a complex a, b must be complex too")
    return LinearScanCall(a, b, start, reverse)
