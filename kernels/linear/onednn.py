"""Linear layers by oneDNN: weights in its own blocked layout, the activation applied before the result is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from gen.kernels.lib import triton as _triton

__all__ = ["Packed", "refuses", "run", "unpackable"]

# Their names in PyTorch's fusions of oneDNN: what, and which form of it.
FUSED = {None: ("none", ""), "gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "silu": ("swish", "")}
ONEDNN: Any = getattr(torch.ops, "mkldnn", None)


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights [out, in] in an opaque layout that suits any number of rows of x."""

    blocked: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(weight: Tensor) -> Packed:
        out, size = weight.shape
        return Packed(ONEDNN._reorder_linear_weight(weight.detach().contiguous()), (out, size))

    def __copy__(self) -> Packed:
        return self  # constant, and so are copies of it

    def __deepcopy__(self, memo: Any) -> Packed:
        return self

    def __reduce__(self) -> Any:
        return Packed.of, (self.dense(),)  # what reads it may have another layout

    @property
    def dtype(self) -> torch.dtype:
        return self.blocked.dtype

    def dense(self) -> Tensor:
        """The weights [out, in], to the bit."""
        if torch.compiler.is_compiling():
            return self.blocked.to_dense()
        with temporarily_clear_interpreter_stack():  # inside of torch.func it would be no dense tensor
            return self.blocked.to_dense()


def unpackable(weight: Tensor) -> str | None:
    """Why oneDNN cannot hold these weights, or None."""
    if weight.ndim != 2 or not weight.numel():
        return f"weights are {list(weight.shape)}; they must be [out, in]"
    if weight.device.type != "cpu":
        return f"weights are on {weight.device}; oneDNN's are on the CPU"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weights are {weight.dtype}; oneDNN's are float32 or bfloat16"
    if not torch._C._has_mkldnn or not hasattr(ONEDNN, "_linear_pointwise"):
        return "this build of PyTorch has no oneDNN"
    if weight.dtype == torch.bfloat16 and not ONEDNN._is_mkldnn_bf16_supported():
        return "this processor has no bfloat16 for oneDNN"
    return None


def refuses(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, activation: str | None) -> str | None:
    if not isinstance(weight, Packed):
        return "weights are not packed"
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        return f"x or bias is not in the weights' {weight.dtype}"
    if not x.numel():
        return "x is empty"
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return "a gradient is asked for"
    return _triton.transformed(x, bias)


def run(x: Tensor, weight: Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    kind, form = FUSED[activation]
    return ONEDNN._linear_pointwise(x, weight.blocked, bias, kind, [], form)
