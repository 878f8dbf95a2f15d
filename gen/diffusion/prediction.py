"""A denoiser's prediction: data and noise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Prediction", "expand"]


class Prediction(NamedTuple):
    """A denoiser's prediction at x_t: E[x0 | x_t] and E[eps | x_t], shaped as x, with alpha x0 + sigma eps = x."""

    x0: Tensor
    eps: Tensor

    def replace(self, x0: Tensor, eps: Tensor) -> Prediction:
        """Return other x0 and eps with whatever else this prediction knows."""
        return Prediction(x0, eps)


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Return a coefficient in the dtype of x and with as many dimensions, so that it broadcasts.

    Args:
        c: 0-d or [B].
        x: [B, ...].
    """
    return c.to(x.dtype) if c.ndim == 0 else c.to(x).reshape(c.shape + (1,) * (x.ndim - 1))
