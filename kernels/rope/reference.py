"""The RMS norm and the rotary embedding of heads as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["norm_rope"]


def norm_rope(x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, pairs: str) -> Tensor:
    """x / rms(x) gain, and each pair of channels (a, b) turned to (a cos - b sin, b cos + a sin)."""
    y = x.double()
    if gain is not None:
        y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * gain.double()
    if cos is not None and sin is not None:
        half = x.shape[-1] // 2
        along, size = (-1, (half, 2)) if pairs == "adjacent" else (-2, (2, half))
        a, b = y.reshape(*y.shape[:-1], *size).unbind(along)
        across = torch.stack([-b, a], along).flatten(-2)
        y = y * cos.double()[..., None, :] + across * sin.double()[..., None, :]
    return y.to(x.dtype)
