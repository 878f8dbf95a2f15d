"""Shared parts of custom ops' gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Context", "double_backward", "save_inputs", "save_inputs_and_outputs", "transform_reason"]


class Context(Protocol):
    """autograd's context of one call, as setup_context and backward get it; `constants` is ours."""

    saved_tensors: tuple[Tensor, ...]
    constants: tuple[Any, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass.

        Args:
            *tensors: inputs, outputs or None.
        """

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for forward-mode derivatives.

        Args:
            *tensors: inputs, outputs or None.
        """

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Declare outputs that have no gradient.

        Args:
            *tensors: outputs.
        """


def transform_reason(*tensors: Tensor | None) -> str | None:
    """Return why only plain PyTorch can differentiate these tensors, or None.

    Args:
        *tensors: the inputs of a custom op; None is ignored.
    """
    if not torch.compiler.is_compiling() and any(t is not None and _is_transformed(t) for t in tensors):
        return "only plain PyTorch passes torch.func and forward-mode derivatives"
    return None


def _is_transformed(t: Tensor) -> bool:
    """Return whether t is inside of torch.func's transforms or carries a forward-mode tangent."""
    if torch._C._functorch.is_functorch_wrapped_tensor(t):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def save_inputs(ctx: Context, inputs: tuple[object, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    """Save the input tensors and every output but the first, which alone is differentiable.

    Args:
        ctx: autograd's context.
        inputs: of a custom op; what is neither a tensor nor None goes to ctx.constants.
        output: its outputs.
    """
    _save(ctx, inputs, () if isinstance(output, Tensor) else output[1:])


def save_inputs_and_outputs(ctx: Context, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    """Save the input tensors and every output, of which the first alone is differentiable.

    Args:
        ctx: autograd's context.
        inputs: of a custom op; what is neither a tensor nor None goes to ctx.constants.
        output: its outputs.
    """
    _save(ctx, inputs, output[1:], output[0])


def _save(ctx: Context, inputs: tuple[object, ...], constant: tuple[Tensor, ...], *first: Tensor) -> None:
    tensors = [v for v in inputs if v is None or isinstance(v, Tensor)]
    ctx.constants = tuple(v for v in inputs if v is not None and not isinstance(v, Tensor))
    ctx.save_for_backward(*tensors, *first, *constant)
    ctx.mark_non_differentiable(*constant)


def double_backward(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dout: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of function(*inputs) by PyTorch, which can be differentiated in their turn.

    Args:
        function: the op in plain PyTorch.
        inputs: its tensors; of those that want no gradient the result is None.
        dout: gradient of its output.
    """
    # Views: if one input was computed from another, each gets its own part only.
    views = [v.view_as(v) for v in inputs]
    wanted = [v for v in views if v.requires_grad]
    grads = iter(torch.autograd.grad(function(*views), wanted, dout, create_graph=True) if wanted else ())
    return tuple(next(grads) if v.requires_grad else None for v in views)
