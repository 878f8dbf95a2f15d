"""Shared parts of the Triton back ends: when a kernel can run, its constants, and its launch.

Kernels' own files import triton; this one must not.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib.autograd import transform_reason

__all__ = [
    "INSTALLED",
    "INTERPRETED",
    "dot_constants",
    "grid_reason",
    "incompatible_reason",
    "launch",
    "mixed_dtypes_reason",
    "power_of_2",
    "stride_reason",
]

INSTALLED = find_spec("triton") is not None
# Triton itself reads this when a kernel is defined: it cannot change within a process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRID = 65535  # programs along the second and third dimension of a grid


def incompatible_reason(*tensors: Tensor | None) -> str | None:
    """Return why no kernel of ours can read these tensors, or None.

    Args:
        *tensors: all that a kernel would be given; None is ignored.
    """
    if not INSTALLED:
        return "triton is not installed; pip install 'gen-diffusion[triton]'"
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
    return transform_reason(*given)


def stride_reason(*tensors: Tensor | None) -> str | None:
    """Return a reason if the last dimension of one of the tensors is strided.

    Args:
        *tensors: of at least one dimension; None is ignored.
    """
    strided = any(t is not None and t.shape[-1] > 1 and t.stride(-1) != 1 for t in tensors)
    return "the last dimension is not contiguous" if strided else None


def mixed_dtypes_reason(*tensors: Tensor | None) -> str | None:
    """Return a reason if the tensors are not of one dtype.

    Args:
        *tensors: None is ignored.
    """
    dtypes = {t.dtype for t in tensors if t is not None}
    return f"mixed dtypes {', '.join(sorted(map(str, dtypes)))}" if len(dtypes) > 1 else None


def grid_reason(programs: int, what: str) -> str | None:
    """Return a reason if there are more programs than a grid has room for.

    Args:
        programs: number along the grid's second or third dimension.
        what: what each of them computes, in the plural.
    """
    return f"{programs} {what}; a grid has room for {GRID}" if programs > GRID else None


def launch(kernel: Any, grid: tuple[int, ...], near: Tensor, *args: object, **constants: object) -> None:
    """Run a kernel on the device where a tensor lies, which need not be the current one.

    Args:
        kernel: a function decorated with @triton.jit.
        grid: number of programs along each dimension.
        near: a tensor on the device.
        *args: the kernel's arguments.
        **constants: its compile-time constants and launch options.
    """
    with torch.cuda.device_of(near):
        kernel[grid](*args, **constants)


def dot_constants(dtype: torch.dtype) -> dict[str, object]:
    """Return DOT, the dtype of the operands of tl.dot, and PRECISION.

    Args:
        dtype: of the tensors.
    """
    import triton.language as tl

    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # The interpreter multiplies the bits of bfloat16, not its numbers.
    return {"DOT": tl.float32 if INTERPRETED else kinds[dtype], "PRECISION": "ieee"}


def power_of_2(size: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least `size` and at least `least`.

    Args:
        size: a positive number.
        least: a power of two.
    """
    return max(least, 1 << (size - 1).bit_length())
