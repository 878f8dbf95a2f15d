"""The derivative of a network along a line in (x, t): what continuous-time consistency and flow maps are trained by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.config.errors import UserError

__all__ = ["Derivative", "slope"]

Derivative = Literal["jvp", "difference"]

STEP = 1e-4  # of the difference: waves of frequency 1000 are still seen, and float32's rounding is not yet


@torch.no_grad()
def slope(
    f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, how: Derivative = "jvp"
) -> Tensor:
    """d/de f(x + e dx, t + e dt) at e = 0, shaped as f(x, t); x and dx [B, ...], t and dt [B]. Carries no gradient.

    "jvp" is exact, by forward-mode differentiation; attention runs in plain operations there, as its fused kernels have
    no forward mode. "difference" is (f(+h) - f(-h)) / 2h with h = 1e-4 and the same dropout on both sides: two calls of
    anything, compiled networks and fused attention among them, but only in full float32 (or better).
    Raises UserError for differences in lower precision.
    """
    x, t, dx, dt = (v.contiguous() for v in (x, t, dx, dt))  # an expanded time cannot carry a derivative
    if how == "jvp":
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is dep", DeprecationWarning)  # torch's own use of it
            return torch.func.jvp(f, (x, t), (dx, dt))[1].detach()
    if torch.is_autocast_enabled(x.device.type):
        raise UserError("derivative difference needs full precision: set precision no, or derivative jvp")
    forked = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        ahead = f(x + STEP * dx, t + STEP * dt)
    behind = f(x - STEP * dx, t - STEP * dt)
    return (ahead - behind) / (2 * STEP)
