"""Shared pieces of the parts that time ops of gen.kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gen.eval.bench import Function, Inputs, Unavailable
from gen.kernels.dispatch import Op, Refused

__all__ = ["doubled", "only", "with_gradients"]


def only(op: Op[..., Any, Any], backend: str, **fixed: Any) -> Function:
    """Return an op by one of its backends; it raises Unavailable, when called, for what that backend refuses.

    Args:
        op: of gen.kernels.
        backend: name.
        **fixed: keywords of every call.
    """
    chosen = op.only(backend)

    def call(*inputs: Any) -> Any:
        try:
            return chosen(*inputs, **fixed)
        except Refused as error:
            raise Unavailable(str(error).partition("refuses: ")[2]) from None

    return call


def doubled(inputs: Inputs) -> Inputs:
    """Return the same numbers in float64; whole numbers, and what is no tensor, as they are.

    Args:
        inputs: of a call; leaves of the graph stay leaves.
    """

    def wide(v: Any) -> Any:
        if not isinstance(v, Tensor) or not (v.is_floating_point() or v.is_complex()):
            return v
        return v.detach().to(torch.promote_types(v.dtype, torch.float64)).requires_grad_(v.requires_grad)

    return tuple(wide(v) for v in inputs)


def with_gradients(f: Function) -> Callable[..., tuple[Tensor, ...]]:
    """Return call(*inputs, *up), one `up` for each result: it returns the results and then the gradients.

    Args:
        f: a function of tensors; gradients are with respect to all inputs that want one.
    """

    def call(*given: Any) -> tuple[Tensor, ...]:
        leaves = [v for v in given if isinstance(v, Tensor) and v.requires_grad]
        inputs = given[: 1 + max(i for i, v in enumerate(given) if isinstance(v, Tensor) and v.requires_grad)]
        outs = f(*inputs)
        outs = (outs,) if isinstance(outs, Tensor) else tuple(outs)
        return (*outs, *torch.autograd.grad(outs, leaves, given[len(inputs) :]))

    return call
