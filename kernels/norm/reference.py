"""Modulated norms and gated residual sums as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["gated_residual", "gated_residual_norm", "modulated_norm"]


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float) -> Tensor:
    """norm(x) (1 + scale) + shift, the norm being (x - mean) / sqrt(variance + eps) gain, or x / rms(x) gain."""
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if gain is not None:
        normed = normed * gain.double()
    return (normed * (1 + scale.double()) + shift.double()).to(x.dtype)


def gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    """x + gate y, rounded to the dtype as what is passed on, and its modulated norm."""
    out = gated_residual(x, y, gate)
    return out, modulated_norm(out, scale, shift, gain, kind, eps)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y."""
    return (x.double() + gate.double() * y.double()).to(x.dtype)
