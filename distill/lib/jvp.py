"""The derivative of a network along a line in (x, t), in continuous-time consistency and flow maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.config.errors import UserError
from gen.distillers.lib.networks import forked_rng

__all__ = ["Derivative", "directional_derivative"]

Derivative = Literal["jvp", "difference"]

STEP = 1e-4  # of the difference: waves of frequency 1000 are still resolved, and float32's rounding is not yet


@torch.no_grad()
def directional_derivative(
    f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, how: Derivative = "jvp"
) -> Tensor:
    """Return d/de f(x + e dx, t + e dt) at e = 0, shaped as f(x, t), without gradient.

    Args:
        f: a function of x and t.
        x, dx: point and direction, [B, ...].
        t, dt: time and direction, [B].
        how: "jvp" is exact, by forward-mode differentiation; attention runs in plain operations there, as its fused
            kernels have no forward mode. "difference" is (f(+h) - f(-h)) / 2h with h = 1e-4 and the same dropout on
            both sides: two calls of anything, compiled networks and fused attention among them.

    Raises:
        UserError: for differences in lower precision than float32, and forwards through products in float8.
    """
    x, t, dx, dt = (v.contiguous() for v in (x, t, dx, dt))  # an expanded time cannot carry a derivative
    if how == "jvp":
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is dep", DeprecationWarning)  # torch's own use of it
            try:
                return torch.func.jvp(f, (x, t), (dx, dt))[1].detach()
            except RuntimeError as error:
                if "setup_context" not in str(error):  # an operation of the network has a backward pass alone
                    raise
                without = "derivative jvp differentiates forwards, which precision fp8 has not"
                raise UserError(f"{without}: set precision bf16 or no") from None
    if torch.is_autocast_enabled(x.device.type):
        raise UserError("derivative difference needs full precision: set precision no, or derivative jvp")
    with forked_rng(x):
        forward = f(x + STEP * dx, t + STEP * dt)
    backward = f(x - STEP * dx, t - STEP * dt)
    return (forward - backward) / (2 * STEP)
