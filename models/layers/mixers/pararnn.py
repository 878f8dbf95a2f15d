"""A gated recurrent network that is solved for all tokens at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from gen.config.fields import check_fields
from gen.kernels.linear_scan import linear_scan
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["ParaRNN", "ParaRNNLayer", "derivative", "solve", "step"]


@dataclass(frozen=True)
class ParaRNN:
    """A GRU with diagonal recurrence, by Newton's method over all tokens, in both directions (Danieli et al. 2025).

    h_t = f(h_(t-1), x_t) for all t is solved by linear scans of f's derivative: quadratic convergence, and exact after
    T iterations. The gradient is that of the solution, by one scan.

    Attributes:
        iterations: of Newton's method; 3 as published.
        shared: one set of weights for both directions.
    """

    iterations: int = 3
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, iterations="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(ParaRNNLayer, width, self.iterations), self.shared)


def step(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Return the next state z n + (1 - z) h, z = sig(a_z h + x_z), r = sig(a_r h + x_r), n = tanh(a_n h r + x_n).

    Args:
        h: states [..., W].
        x: from the tokens, for z, r, n: [..., 3, W].
        a: recurrent weights [3, W].
    """
    z, _, n = _gates(h, x, a)
    return z * n + (1 - z) * h


def derivative(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Return that of `step` to h, [..., W].

    Args:
        h, x, a: as there.
    """
    z, r, n = _gates(h, x, a)
    inner = a[2] * (r + h * r * (1 - r) * a[1])
    return (1 - z) + (n - h) * z * (1 - z) * a[0] + z * (1 - n**2) * inner


def _gates(h: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x_z, x_r, x_n = x.unbind(-2)
    z, r = (a[0] * h + x_z).sigmoid(), (a[1] * h + x_r).sigmoid()
    return z, r, (a[2] * h * r + x_n).tanh()


def solve(x: Tensor, a: Tensor, iterations: int) -> Tensor:
    """Return all states [B, T, W] from a state of 0, with the gradient of the exact solution at what was found.

    Args:
        x: from the tokens, [B, T, 3, W].
        a: recurrent weights [3, W].
        iterations: of Newton's method.
    """
    with torch.no_grad():
        h = step(torch.zeros_like(x[..., 0, :]), x, a)
        for _ in range(iterations - 1):
            h = _newton(h, x, a)
    return _newton(h, x, a)  # x and a are differentiated through one step; its slopes are constants


def _newton(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    with torch.no_grad():
        slope = derivative(before, x, a)
        slope[:, 0] = 0
    return linear_scan(slope, step(before, x, a) - slope * before)


class ParaRNNLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last, gated by SiLU of a product.

    Args:
        width: of the tokens.
        iterations: of Newton's method.
    """

    def __init__(self, width: int, iterations: int):
        super().__init__()
        self.iterations = iterations
        self.x_proj = nn.Linear(width, 3 * width)
        self.recurrent = nn.Parameter(torch.randn(3, width) * 2 * (5 * width) ** -0.5)
        self.g_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        with torch.no_grad():
            self.x_proj.bias[:width] = -torch.linspace(0, 1, width)  # z: slow and fast channels

    def forward(self, h: Tensor) -> Tensor:
        states = solve(self.x_proj(h).unflatten(-1, (3, -1)), self.recurrent, self.iterations)
        out: Tensor = self.o_proj(self.norm(states) * silu(self.g_proj(h)))
        return out
