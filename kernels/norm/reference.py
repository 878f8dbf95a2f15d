"""Modulated norms and gated residual sums as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

from torch import Tensor

from gen.kernels.norm.call import GatedResidualCall, GatedResidualNormCall, ModulatedNormCall

__all__ = ["gated_residual", "gated_residual_norm", "modulated_norm"]


def modulated_norm(call: ModulatedNormCall) -> Tensor:
    """Return norm(x) (1 + scale) + shift; norm: (x - mean) / sqrt(variance + eps) gain, or x / rms(x) gain.

    Args:
        call: the complete arguments.
    """
    x, scale, shift, gain, kind, eps = call
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if gain is not None:
        normed = normed * gain.double()
    return (normed * (1 + scale.double()) + shift.double()).to(x.dtype)


def gated_residual(call: GatedResidualCall) -> Tensor:
    """Return x + gate y.

    Args:
        call: the complete arguments.
    """
    x, y, gate = call
    return (x.double() + gate.double() * y.double()).to(x.dtype)


def gated_residual_norm(call: GatedResidualNormCall) -> tuple[Tensor, Tensor]:
    """Return x + gate y, rounded to the dtype as it is passed on, and its modulated norm.

    Args:
        call: the complete arguments.
    """
    out = gated_residual(call.residual())
    return out, modulated_norm(call.norm(out))
