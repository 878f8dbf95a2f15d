"""Norms, modulation and gates in the fewest operations that PyTorch has; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

__all__ = [
    "gated_residual",
    "gated_residual_norm",
    "gated_residual_norm_refuses",
    "gated_residual_refuses",
    "modulated_norm",
    "modulated_norm_refuses",
]


def modulated_norm_refuses(
    x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> str | None:
    return None


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float) -> Tensor:
    size = x.shape[-1:]
    normed = layer_norm(x, size, gain, None, eps) if kind == "layer" else rms_norm(x, size, gain, eps)
    return torch.addcmul(shift, normed, 1 + scale)


def gated_residual_refuses(x: Tensor, y: Tensor, gate: Tensor) -> str | None:
    return None


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate, y)


def gated_residual_norm_refuses(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> str | None:
    return None


def gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    out = gated_residual(x, y, gate)
    return out, modulated_norm(out, scale, shift, gain, kind, eps)
