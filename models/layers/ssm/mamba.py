"""Mamba: a gated mixer of tokens around the selective scan, in one direction or both."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from gen.config.errors import UserError
from gen.kernels.selective_scan import selective_scan
from gen.kernels.short_convolution import short_convolution

__all__ = ["Mamba", "log_uniform"]


def log_uniform(*shape: int, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """Return logarithms of numbers spread log-uniformly over [low, high]: the initial steps dt of all these layers.

    Args:
        *shape: of the result.
        low, high: bounds of the numbers.
    """
    return torch.empty(*shape).uniform_(math.log(low), math.log(high))


class Mamba(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width] (Gu & Dao 2023). Names in the state dict are the published ones.

    state: N, numbers of state per channel. conv: length of the short causal convolution. expand: inner channels are
    expand * width. condition: width of a vector c [B, condition] that is projected ("cond_proj") and added to every
    token's inner channels after the convolution, before its SiLU; None for a mixer without one (DiMSUM, Phung et al.
    2024). bidirectional: a second convolution and scan, with weights of their own ("conv1d_b", "A_b_log", ...), read
    the tokens from the last to the first; both are summed before out_proj (Vision Mamba, Zhu et al. 2024).
    """

    def __init__(
        self,
        width: int,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        condition: int | None = None,
        bidirectional: bool = False,
    ):
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.state, self.rank, self.bidirectional = state, rank, bidirectional
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D = _direction(inner, state, conv, rank)
        if bidirectional:
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b = _direction(inner, state, conv, rank)
        self.cond_proj = None if condition is None else nn.Linear(condition, inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor, c: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """Mix tokens h [B, T, width].

        Args:
            h: tokens.
            c: condition [B, condition], None for a mixer without one.
            order: int64 [T], the tokens in the order of the scan, each once; None for the order in which they lie.
        """
        if order is not None and h.device.type == "cpu":
            # Where no kernel reads tokens by index, copying the few channels of h beats indexing the many inside.
            return self(h[:, order], c)[:, order.argsort()]
        if (c is None) != (self.cond_proj is None):
            raise UserError("this Mamba has no condition" if self.cond_proj is None else "this Mamba needs a condition")
        u, z = self.in_proj(h).chunk(2, -1)  # each [B, T, inner]
        shift = 0.0 if self.cond_proj is None else self.cond_proj(c)[:, None]  # [B, 1, inner]
        y = self._scan(u, shift, order, False, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        if self.bidirectional:
            back = self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
            y = y + self._scan(u, shift, order, True, *back)
        return self.out_proj(y * silu(z))  # [B, T, width]

    def _scan(
        self,
        u: Tensor,
        shift: Tensor | float,
        order: Tensor | None,
        reverse: bool,
        conv: nn.Conv1d,
        x_proj: nn.Module,
        dt_proj: nn.Module,
        A_log: Tensor,
        D: Tensor,
    ) -> Tensor:
        """Return one direction, before its gate: u [B, T, inner] -> [B, T, inner]."""
        u = silu(short_convolution(u, conv.weight[:, 0], cast(Tensor, conv.bias), order, reverse) + shift)
        dt, B, C = x_proj(u).split([self.rank, self.state, self.state], -1)
        y = selective_scan(u, softplus(dt_proj(dt)), -A_log.exp(), B, C, order, reverse)
        return torch.addcmul(y, u, D)


def _direction(inner: int, state: int, conv: int, rank: int) -> tuple[nn.Conv1d, nn.Module, nn.Module, Tensor, Tensor]:
    """Return the weights of one direction as published: A = -1 ... -N in every channel, steps as in log_uniform."""
    dt_proj = nn.Linear(rank, inner)
    nn.init.uniform_(dt_proj.weight, -(rank**-0.5), rank**-0.5)
    dt = log_uniform(inner).exp().clamp(min=1e-4)
    with torch.no_grad():
        dt_proj.bias.copy_(dt + (-torch.expm1(-dt)).log())  # softplus of the bias is dt
    return (
        nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1),
        nn.Linear(inner, rank + 2 * state, bias=False),
        dt_proj,
        nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1)),
        nn.Parameter(torch.ones(inner)),
    )
