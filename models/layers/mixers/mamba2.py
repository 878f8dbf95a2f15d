"""Mamba-2."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from gen.config.fields import check_fields
from gen.kernels.short_convolution import short_convolution
from gen.kernels.ssd import ssd
from gen.models.layers.mixers.lib.directions import Both
from gen.models.layers.ssm.mamba import log_uniform

__all__ = ["Mamba2", "Mamba2Layer"]


@dataclass(frozen=True)
class Mamba2:
    """A state space with one decay for each head, in both directions (Dao & Gu 2024, arXiv 2405.21060).

    Attributes:
        heads: of it.
        state: numbers of state per channel.
        conv: length of the short causal convolution.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    state: int = 16
    conv: int = 4
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", state="[1, inf)", conv="[1, 16]")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(Mamba2Layer, width, self.heads, self.state, self.conv), self.shared)


class Mamba2Layer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last.

    One product gives gate z, input x, maps B and C and steps; x, B and C pass the convolution and SiLU; the output is
    RMS-normalised after the gate, as published.

    Args:
        width, heads, state, conv: see Mamba2; inner channels are the width.
    """

    def __init__(self, width: int, heads: int, state: int, conv: int):
        super().__init__()
        self.parts = [width, width, state, state, heads]
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.conv1d = nn.Conv1d(width + 2 * state, width + 2 * state, conv, groups=width + 2 * state)
        dt = log_uniform(heads).exp().clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + (-torch.expm1(-dt)).log())  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        width, _, state, _, heads = self.parts
        z, x, B, C, dt = self.in_proj(h).split(self.parts, -1)
        bias: Tensor = self.conv1d.bias  # type: ignore[assignment]
        mixed = silu(short_convolution(torch.cat([x, B, C], -1), self.conv1d.weight[:, 0], bias))
        x, B, C = mixed.split([width, state, state], -1)
        x = x.unflatten(-1, (heads, -1))
        y = ssd(x, softplus(dt + self.dt_bias), -self.A_log.exp(), B[:, :, None], C[:, :, None])
        y = (y + self.D[:, None] * x).flatten(2)
        out: Tensor = self.out_proj(self.norm(y * silu(z)))
        return out
