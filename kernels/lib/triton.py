"""Whether Triton can run here at all. Kernels' own files import triton; this one must not."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["INSTALLED", "INTERPRETED", "again", "launch", "transformed", "unable"]

INSTALLED = find_spec("triton") is not None
# Triton itself reads this when a kernel is defined: it cannot change within a process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unable(*tensors: Tensor | None) -> str | None:
    """Why no kernel of ours can read these tensors; None if nothing stands against it."""
    if not INSTALLED:
        return "triton is not installed; pip install 'gen[triton]'"
    given = [t for t in tensors if t is not None]
    for t in given:
        if t.device != given[0].device:
            return f"tensors lie on {given[0].device} and {t.device}"
        if t.device.type != "cuda" and not INTERPRETED:
            return f"tensors lie on {t.device.type}; kernels run on CUDA, or interpreted if TRITON_INTERPRET=1 at start"
        if t.is_floating_point() and t.dtype not in DTYPES:
            return f"no kernel for {t.dtype}"
        if t.numel() >= 2**31:
            return f"a tensor of {t.numel()} numbers; kernels count to 2^31"
    return transformed(*given)


def launch(kernel: Any, grid: tuple[int, ...], near: Tensor, *args: Any, **constants: Any) -> None:
    """Runs a kernel on the device where `near` lies, which need not be the current one."""
    with torch.cuda.device_of(near):  # type: ignore[no-untyped-call]
        kernel[grid](*args, **constants)


def again(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dout: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of function(*inputs) in PyTorch, to be differentiated in their turn; None for constants.

    Of views of the inputs, so that one that another was made of has what is its own part only.
    """
    views = [v.view_as(v) for v in inputs]
    wanted = [v for v in views if v.requires_grad]
    found = iter(torch.autograd.grad(function(*views), wanted, dout, create_graph=True) if wanted else ())
    return tuple(next(found) if v.requires_grad else None for v in views)


def transformed(*tensors: Tensor | None) -> str | None:
    """Why only what has derivatives of all kinds may be given these tensors; None if nothing stands against it."""
    if not torch.compiler.is_compiling() and any(t is not None and _transformed(t) for t in tensors):
        return "only plain PyTorch passes torch.func and forward-mode derivatives"
    return None


def _transformed(t: Tensor) -> bool:
    """Whether t is inside of torch.func's transforms or carries a forward-mode tangent."""
    if torch._C._functorch.is_functorch_wrapped_tensor(t):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
