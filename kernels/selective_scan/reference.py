"""The selective scan, token by token.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.selective_scan.call import SelectiveScanCall

__all__ = ["selective_scan"]


def selective_scan(call: SelectiveScanCall) -> Tensor:
    """Return y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t of every channel.

    Args:
        call: the complete arguments.
    """
    u, delta, A, B, C, order, reverse = call
    u_, delta_, A_, B_, C_ = (v.double() for v in (u, delta, A, B, C))
    h = u_.new_zeros(u.shape[0], *A.shape)  # [b, D, N]
    visits = torch.arange(u.shape[1], device=u.device) if order is None else order
    outs = []
    for t in (visits.flip(0) if reverse else visits)[:, None]:  # index as a tensor [1], which a traced graph can hold
        decay = (delta_[:, t, :, None] * A_).exp()[:, 0]
        h = decay * h + ((delta_[:, t] * u_[:, t])[..., None] * B_[:, t, None])[:, 0]
        outs.append((h * C_[:, t]).sum(-1))
    back = visits.flip(0).argsort() if reverse else visits.argsort()
    return torch.stack(outs, 1)[:, back].to(u.dtype) if outs else u * 1
