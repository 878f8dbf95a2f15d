"""Iterative linear algebra over a batch, in which no row depends on another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gen.diffusion.prediction import expand

__all__ = ["conjugate_gradients", "largest_singular_value"]


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    x: Tensor | None = None,
    steps: int = 200,
    tolerance: float | None = None,
) -> Tensor:
    """Solve M x = b by conjugate gradients (Hestenes & Stiefel 1952); each row stops by itself.

    Where M is singular and b in its range, what x has in M's kernel is kept.

    Args:
        apply: v -> M v for v like b; M is symmetric and positive semi-definite, of each row its own.
        b: [B, ...].
        x: where to start; None for 0.
        steps: at most so many products with M.
        tolerance: of |b - M x| / |b|; None for 10 times the precision of b's dtype.

    Returns:
        x, like b.
    """
    x = torch.zeros_like(b) if x is None else x
    r = b - apply(x)
    d, rr = r, _dot(r, r)
    enough = _dot(b, b) * (10 * torch.finfo(b.dtype).eps if tolerance is None else tolerance) ** 2
    for _ in range(steps):
        going = rr > enough
        if not going.any():
            break
        q = apply(d)
        curvature = _dot(d, q)
        going = going & (curvature > 0)
        step = torch.where(going, rr / torch.where(going, curvature, 1), 0)
        x, r = x + expand(step, d) * d, r - expand(step, d) * q
        new = _dot(r, r)
        d = r + expand(torch.where(going, new / torch.where(going, rr, 1), 0), d) * d
        rr = torch.where(going, new, torch.zeros_like(rr))  # a row without curvature left is done
    return x


def largest_singular_value(
    A: Callable[[Tensor], Tensor], At: Callable[[Tensor], Tensor], x: Tensor, steps: int = 100
) -> float:
    """Return |A| by power iteration on A' A, from below.

    Args:
        A, At: the operator and its adjoint on batches.
        x: where to start [1, ...], not orthogonal to the leading singular vector.
        steps: of iteration.
    """
    for _ in range(steps):
        x = At(A(x))
        size = x.norm()
        if size == 0:
            return 0.0
        x = x / size
    return float(A(x).norm())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
