"""Linear attention as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

from torch import Tensor

from gen.kernels.linear_attention.call import LinearAttentionCall

__all__ = ["linear_attention"]


def linear_attention(call: LinearAttentionCall) -> Tensor:
    """Return q S, where S sums v_t over the tokens with weights softmax_t(k), channel by channel.

    Args:
        call: the complete arguments.
    """
    q, k, v = call
    return (q.double() @ (k.double().softmax(-2).mT @ v.double())).to(q.dtype)
