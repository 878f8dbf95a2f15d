"""Minimisation of each row of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gen.diffusion.prediction import expand

__all__ = ["minimised"]

Curve = tuple[Tensor, Tensor, Tensor]  # a step [B, ...], how the gradient changed, 1 / their product [B] or 0


def minimised(
    loss: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, iterations: int, memory: int = 10, halvings: int = 12
) -> Tensor:
    """Return z after iterations of L-BFGS (Liu & Nocedal 1989), each row with its own curvature and step.

    Steps are halved until the loss falls by 1e-4 of what the slope promises; a row for which none does is done.

    Args:
        loss: z -> values [B] and gradients, shaped as z; row i of row i alone.
        z: where to start, [B, ...].
        iterations: how many.
        memory: steps that the curvature is known from.
        halvings: of a step, at most.
    """
    value, gradient = loss(z)
    going, curves = torch.ones_like(value), list[Curve]()
    for _ in range(iterations):
        way = -expand(going, z) * _preconditioned(gradient, curves)
        slope, size = _dot(way, gradient), torch.ones_like(value)
        for _ in range(halvings):
            there = z + expand(size, z) * way
            new, rises = loss(there)
            enough = new <= value + 1e-4 * size * slope
            if bool(enough.all()):
                break
            size = torch.where(enough, size, size / 2)
        kept = expand(enough, z) > 0
        there, rises = torch.where(kept, there, z), torch.where(kept, rises, gradient)
        step, change = there - z, rises - gradient
        product = _dot(step, change)
        curved = product > torch.finfo(z.dtype).eps * _dot(change, change)
        curves = [*curves, (step, change, torch.where(curved, 1 / torch.where(curved, product, 1), 0))][-memory:]
        z, value, gradient = there, torch.where(enough, new, value), rises
        going = going * enough
        if not bool(going.any()):
            break
    return z


def _preconditioned(gradient: Tensor, curves: list[Curve]) -> Tensor:
    """Return the inverse Hessian times the gradient, by the two loops of L-BFGS."""
    tiny = torch.finfo(gradient.dtype).tiny
    out, shares = gradient, []
    unit = 1 / gradient.flatten(1).norm(dim=1).clamp(min=1)  # where nothing is known of the curvature
    for step, change, inverse in reversed(curves):
        share = inverse * _dot(step, out)
        out = out - expand(share, out) * change
        shares.append(share)
    if curves:
        _, change, inverse = curves[-1]
        unit = torch.where(inverse > 0, 1 / (inverse * _dot(change, change)).clamp(min=tiny), unit)
    out = out * expand(unit, out)
    for (step, change, inverse), share in zip(curves, reversed(shares), strict=True):
        out = out + expand(share - inverse * _dot(change, out), out) * step
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
