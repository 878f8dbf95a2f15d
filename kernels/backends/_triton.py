"""Whether Triton can run here at all. Kernels' own files import triton; this one must not."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["INSTALLED", "INTERPRETED", "launch", "transformed", "unable"]

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
    if not torch.compiler.is_compiling() and any(map(transformed, given)):
        return "only plain PyTorch passes torch.func and forward-mode derivatives"
    return None


def launch(kernel: Any, grid: tuple[int, ...], near: Tensor, *args: Any, **constants: Any) -> None:
    """Runs a kernel on the device where `near` lies, which need not be the current one."""
    with torch.cuda.device_of(near):  # type: ignore[no-untyped-call]
        kernel[grid](*args, **constants)


def transformed(t: Tensor) -> bool:
    """Whether t is inside of torch.func's transforms or carries a forward-mode tangent: no custom op sees through."""
    if torch._C._functorch.is_functorch_wrapped_tensor(t):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
