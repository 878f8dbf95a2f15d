"""Norm and rotary embedding of heads in PyTorch's own operations; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from gen.kernels.rope.call import NormRopeCall

__all__ = ["run"]


def run(call: NormRopeCall) -> Tensor:
    """Compute norm and rotation one after the other."""
    x, gain, eps, cos, sin, pairs = call
    h = x
    if gain is not None and gain.dtype != x.dtype:  # as under autocast; PyTorch would warn
        wide = torch.promote_types(x.dtype, gain.dtype)
        h, gain = x.to(wide), gain.to(wide)
    if gain is not None:
        h = rms_norm(h, h.shape[-1:], gain, eps)
    if cos is not None and sin is not None:
        h = h * cos.unsqueeze(-2) + _quarter_turn(h, pairs) * sin.unsqueeze(-2)
    return h.to(x.dtype)


def _quarter_turn(h: Tensor, pairs: str) -> Tensor:
    """Return each pair of channels rotated by a quarter turn: (a, b) -> (-b, a)."""
    if pairs == "adjacent":
        return torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2)
    a, b = h.chunk(2, -1)
    return torch.cat([-b, a], -1)
