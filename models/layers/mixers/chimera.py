"""A state space in two dimensions."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from gen.config.fields import check_fields
from gen.kernels.linear_scan import linear_scan
from gen.models.layers.mixers.lib.directions import Both
from gen.models.layers.ssm.mamba import log_uniform

__all__ = ["Chimera", "ChimeraLayer", "scan"]


@dataclass(frozen=True)
class Chimera:
    """Two states of each channel, one along rows and one down columns, that drive each other (Behrouz et al. 2024).

    h1[v, t] = A1 h1[v, t-1] + A2 h2[v, t-1] + B1 x[v, t], h2[v, t] = A3 h1[v-1, t] + A4 h2[v-1, t] + B2 x[v, t], and
    y = C1 h1 + C2 h2, in both directions: our reading of arXiv 2406.04320, whose code is not public. |A1| + |A2| and
    |A3| + |A4| are at most 1. A token sees those above and left of it, and those below and right.

    Attributes:
        state: numbers of state per channel, of each.
        shared: one set of weights for both directions.
    """

    state: int = 4
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, state="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width on a grid."""
        return Both(functools.partial(ChimeraLayer, width, self.state, grid), self.shared)


def scan(A1: Tensor, A2: Tensor, A3: Tensor, A4: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Return h1 and h2, each [B, V, T, ...]: row after row, each of them one linear scan along t.

    Args:
        A1, A2, A3, A4: coefficients [B, V, T, ...].
        b1, b2: drives, B1 x and B2 x, [B, V, T, ...].
    """
    h1, h2 = torch.zeros_like(b1[:, 0]), torch.zeros_like(b2[:, 0])
    first, second = [], []
    for v in range(b1.shape[1]):
        h2 = A3[:, v] * h1 + A4[:, v] * h2 + b2[:, v] if v else b2[:, v]
        left = torch.cat([torch.zeros_like(h2[:, :1]), h2[:, :-1]], 1)
        h1 = linear_scan(A1[:, v], b1[:, v] + A2[:, v] * left)
        first.append(h1)
        second.append(h2)
    return torch.stack(first, 1), torch.stack(second, 1)


class ChimeraLayer(nn.Module):
    """Tokens h [B, T, width] of a grid -> [B, T, width], from the top left to the bottom right.

    Args:
        width, state: see Chimera.
        grid: rows and columns.
    """

    def __init__(self, width: int, state: int, grid: tuple[int, int]):
        super().__init__()
        self.grid, self.state = grid, state
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.maps = nn.Linear(width, 4 * state, bias=False)  # B1, B2, C1, C2
        self.steps = nn.Linear(width, 2 * width)  # of both dimensions
        dt = log_uniform(2 * width).exp()
        with torch.no_grad():
            self.steps.weight.mul_(0.1)
            self.steps.bias.copy_(dt + (-torch.expm1(-dt)).log())  # softplus of it is dt
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(2, width, 1))
        self.cross = nn.Parameter(torch.randn(2, width, state) * 0.1)
        self.D = nn.Parameter(torch.ones(width))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        u, z = self.in_proj(h).chunk(2, -1)
        grid = u.unflatten(1, self.grid)  # [B, V, T, width]
        B1, B2, C1, C2 = self.maps(grid)[..., None, :].chunk(4, -1)  # each [B, V, T, 1, N]
        parts = []
        for i, dt in enumerate(softplus(self.steps(grid)).chunk(2, -1)):
            kept = torch.exp(-dt[..., None] * self.A_log[i].exp())  # [B, V, T, width, N]
            parts.append((kept, (1 - kept) * self.cross[i].tanh(), dt[..., None] * grid[..., None]))
        (A1, A2, x1), (A4, A3, x2) = parts
        h1, h2 = scan(A1, A2, A3, A4, B1 * x1, B2 * x2)
        y = (C1 * h1 + C2 * h2).sum(-1) + self.D * grid
        out: Tensor = self.o_proj(y.flatten(1, 2) * silu(z))
        return out
