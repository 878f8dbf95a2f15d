"""Mamba-2's scan, token by token.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.ssd.call import SSDCall

__all__ = ["ssd"]


def ssd(call: SSDCall) -> Tensor:
    """Return y_t = C_t h_t of the states h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T of every head.

    Args:
        call: the complete arguments.
    """
    x, delta, A, B, C = call
    x_, delta_, A_ = x.double(), delta.double(), A.double()
    B_, C_ = (v.double().repeat_interleave(x.shape[2] // v.shape[2], 2) for v in (B, C))  # [b, T, H, N]
    h = x_.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    outs = []
    for t in range(x.shape[1]):
        decay = (delta_[:, t] * A_).exp()[..., None, None]
        h = decay * h + (delta_[:, t, :, None] * B_[:, t])[..., None] * x_[:, t, :, None]
        outs.append((C_[:, t, :, None] @ h).squeeze(2))  # [b, H, P]
    return torch.stack(outs, 1).to(x.dtype)
