"""Linear attention in two products of PyTorch; differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.linear_attention.call import LinearAttentionCall

__all__ = ["run"]


def run(call: LinearAttentionCall) -> Tensor:
    """Compute the state and what q reads of it."""
    return call.q @ (call.k.softmax(-2).mT @ call.v)
