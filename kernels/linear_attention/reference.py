"""Linear attention as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["linear_attention"]


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q S, where S sums v_t over the tokens with weights softmax_t(k), channel by channel."""
    share = k.double().softmax(-2)
    return (q.double() @ (share.mT @ v.double())).to(q.dtype)
