"""Convolutions of networks that are only evaluated: batch norm folded in, the activation in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Activation", "FoldedConv", "fold_norm"]

Activation = Literal["relu", "relu6", "none"]
ONEDNN: Any = getattr(torch.ops, "mkldnn", None)
FUSED = {"relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0]), "none": ("none", [])}  # oneDNN's names


def fold_norm(weight: Tensor, norm: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution without bias and the batch norm after it as one.

    Args:
        weight: [out, in / groups, h, w].
        norm: gamma, beta, mean and variance, each [out].
        eps: of the norm.
    """
    gamma, beta, mean, var = (part.double() for part in norm)
    scale = gamma / (var + eps).sqrt()
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), (beta - mean * scale).to(weight.dtype)


class FoldedConv(nn.Module):
    """activation(conv(x) + bias), [B, in, H, W] to [B, out, H', W'].

    On the CPU in float32 oneDNN computes it where no gradient is needed, with weights laid out once for the shape of
    the first batch.

    Args:
        weight: [out, in / groups, h, w].
        bias: [out].
        stride: of both sides.
        padding: of zeros, on both ends of (H, W).
        groups: of channels.
        activation: "relu", "relu6" or "none".
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        groups: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.how = [*padding], [stride, stride], [1, 1], groups
        self.activation: Activation = activation
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.how
        if self._packs(x):
            attr, scalars = FUSED[self.activation]
            return ONEDNN._convolution_pointwise(
                x, self.packed, self.bias, padding, stride, dilation, groups, attr, scalars, ""
            )
        out = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        if self.activation == "relu":
            return F.relu_(out)
        return F.hardtanh_(out, 0.0, 6.0) if self.activation == "relu6" else out

    def _packs(self, x: Tensor) -> bool:
        """Return whether oneDNN computes a call, after laying out the weights if it is the first one."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or not hasattr(ONEDNN, "_convolution_pointwise"):
            return False
        if x.requires_grad and torch.is_grad_enabled():  # it has no gradient
            return False
        if self.packed is None:
            padding, stride, dilation, groups = self.how
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self.packed = reorder(self.weight.to_mkldnn(), padding, stride, dilation, groups, list(x.shape))
        return True
