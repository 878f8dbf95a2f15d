"""Weights laid out once as oneDNN reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from gen.kernels.dispatch import Refused

__all__ = ["ONEDNN", "PackedWeight", "pack", "unpackable"]

ONEDNN: Any = getattr(torch.ops, "mkldnn", None)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Constant weights [out, in] in an opaque layout that suits any number of rows of x.

    Attributes:
        blocked: the weights in oneDNN's layout.
        shape: (out, in).
    """

    blocked: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(weight: Tensor) -> PackedWeight:
        """Return a packed copy of weights [out, in]."""
        out, size = weight.shape
        return PackedWeight(ONEDNN._reorder_linear_weight(weight.detach().contiguous()), (out, size))

    def __copy__(self) -> PackedWeight:
        return self  # constant, and so are copies of it

    def __deepcopy__(self, memo: dict[int, object]) -> PackedWeight:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return PackedWeight.of, (self.dense(),)  # what reads it may have another layout

    @property
    def dtype(self) -> torch.dtype:
        return self.blocked.dtype

    def dense(self) -> Tensor:
        """Return the weights [out, in], to the bit."""
        if torch.compiler.is_compiling():
            return self.blocked.to_dense()
        with temporarily_clear_interpreter_stack():  # inside of torch.func it would be no dense tensor
            return self.blocked.to_dense()


def pack(weight: Tensor) -> PackedWeight:
    """Return a copy of weights in oneDNN's layout.

    Args:
        weight: [out, in].

    Raises:
        Refused: where oneDNN cannot, see `unpackable`.
    """
    reason = unpackable(weight)
    if reason is not None:
        raise Refused(f"pack: {reason}")
    return PackedWeight.of(weight)


def unpackable(weight: Tensor) -> str | None:
    """Return why oneDNN cannot hold these weights, or None.

    Args:
        weight: [out, in].
    """
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
