"""Short convolution by PyTorch: one multiplication of all tokens for each tap; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.short_convolution.call import ShortConvolutionCall

__all__ = ["run"]


def run(call: ShortConvolutionCall) -> Tensor:
    """Compute tap after tap, on tokens in their order."""
    u, weight, bias, order, reverse = call
    if order is not None:
        return _taps(u[:, order], weight, bias, reverse)[:, order.argsort()]
    return _taps(u, weight, bias, reverse)


def _taps(u: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    length, (*taps, own) = u.shape[1], weight.unbind(1)
    far = len(taps)
    near = pad(u, (0, 0, 0, far) if reverse else (0, 0, far, 0))  # [B, T + k - 1, H]
    out = torch.addcmul(bias, u, own)
    for k, tap in enumerate(taps[::-1] if reverse else taps):
        start = k + 1 if reverse else k
        out = torch.addcmul(out, near[:, start : start + length], tap)
    return out
