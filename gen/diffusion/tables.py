"""Tables of noise levels: those of DDPM, and the values between the entries of any."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cosine_betas", "interpolate_table", "power_betas", "table_position", "table_slope"]


def cosine_betas(steps: int) -> Tensor:
    """Return the betas with prod(1 - beta) = cos^2, clipped, float64 [steps] (Nichol & Dhariwal 2021, eq. 17).

    Args:
        steps: length of the table.
    """
    s = torch.arange(steps + 1, dtype=torch.float64) / steps
    bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def power_betas(steps: int, start: float, end: float, power: float) -> Tensor:
    """Return betas whose power rises evenly, float64 [steps].

    Args:
        steps: length of the table.
        start, end: the first beta and the last.
        power: 1 for DDPM's, 1/2 for Stable Diffusion's.
    """
    return torch.linspace(start**power, end**power, steps, dtype=torch.float64) ** (1 / power)


def interpolate_table(table: Tensor, t: Tensor) -> Tensor:
    """Return the value at t of a table at 0, 1, 2, ..., linear between entries, shaped as t.

    Args:
        table: [n].
        t: times, any shape.
    """
    table, k = table.to(t.device), _cell(table, t)
    return torch.lerp(table[k], table[k + 1], t.double() - k).to(t.dtype)


def table_slope(table: Tensor, t: Tensor) -> Tensor:
    """Return the derivative of `interpolate_table` at t.

    Args:
        table, t: as there.
    """
    return table.diff().to(t)[_cell(table, t)]


def table_position(table: Tensor, value: Tensor) -> Tensor:
    """Return the t at which a rising table has a value: the inverse of `interpolate_table`.

    Args:
        table: [n].
        value: any shape.
    """
    table = table.to(value.device)
    k = (torch.searchsorted(table, value.double()) - 1).clamp(0, len(table) - 2)
    return (k + (value - table[k]) / (table[k + 1] - table[k])).to(value.dtype)


def _cell(table: Tensor, t: Tensor) -> Tensor:
    """The index k of the table's cell [k, k + 1] that holds t, shaped as t."""
    return t.detach().floor().long().clamp(0, len(table) - 2)
