"""The RMS norm and the rotary embedding of heads as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.rope.call import NormRopeCall

__all__ = ["norm_rope"]


def norm_rope(call: NormRopeCall) -> Tensor:
    """Return x / rms(x) gain, with each pair of channels (a, b) rotated to (a cos - b sin, b cos + a sin).

    Args:
        call: the complete arguments.
    """
    x, gain, eps, cos, sin, pairs = call
    y = x.double()
    if gain is not None:
        y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * gain.double()
    if cos is not None and sin is not None:
        half = x.shape[-1] // 2
        dim, size = (-1, (half, 2)) if pairs == "adjacent" else (-2, (2, half))
        a, b = y.reshape(*y.shape[:-1], *size).unbind(dim)
        quarter_turn = torch.stack([-b, a], dim).flatten(-2)
        y = y * cos.double()[..., None, :] + quarter_turn * sin.double()[..., None, :]
    return y.to(x.dtype)
