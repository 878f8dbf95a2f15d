"""Norms, modulation and gates in the fewest operations that PyTorch has; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from gen.kernels.norm.call import GatedResidualCall, GatedResidualNormCall, ModulatedNormCall

__all__ = ["gated_residual", "gated_residual_norm", "modulated_norm"]


def modulated_norm(call: ModulatedNormCall) -> Tensor:
    """Compute the norm and its modulation."""
    x, scale, shift, gain, kind, eps = call
    size = x.shape[-1:]
    mixed = gain is not None and gain.dtype != x.dtype  # PyTorch's norms take none
    wide, gain = (x.float(), gain.float()) if mixed and gain is not None else (x, gain)
    normed = layer_norm(wide, size, gain, None, eps) if kind == "layer" else rms_norm(wide, size, gain, eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def gated_residual(call: GatedResidualCall) -> Tensor:
    """Compute the sum."""
    return torch.addcmul(call.x, call.gate, call.y).to(call.x.dtype)


def gated_residual_norm(call: GatedResidualNormCall) -> tuple[Tensor, Tensor]:
    """Compute the sum and then its norm."""
    out = gated_residual(call.residual())
    return out, modulated_norm(call.norm(out))
