"""Hyena: gates around a long convolution whose kernel is a small network of the distance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.kernels.long_convolution import long_convolution

__all__ = ["Hyena", "HyenaConvolution", "HyenaFilter", "HyenaLayer"]


@dataclass(frozen=True)
class Hyena:
    """u1 * conv(u2 * v) of three maps after a short convolution each (Poli et al. 2023; Monarch Mixer, Fu et al. 2023).

    The kernel reaches both ways. It is sin-activated layers of a token's distance in waves, and fades with it at
    another rate in each channel.

    Attributes:
        waves: pairs of sine and cosine of the distance.
        hidden: width of the network of the kernel.
        short: length of the short convolution, odd.
    """

    waves: int = 2
    hidden: int = 16
    short: int = 3

    def __post_init__(self) -> None:
        check_fields(self, waves="[1, inf)", hidden="[1, inf)", short="[1, 31]")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return HyenaLayer(width, self.short, functools.partial(HyenaConvolution, width, self.waves, self.hidden))


class HyenaFilter(nn.Module):
    """Kernels [width, 2 length] of distances -length ... length - 1, the one of 0 first, as long_convolution has them.

    Args:
        width: channels.
        waves, hidden: see Hyena.
    """

    rates: Tensor

    def __init__(self, width: int, waves: int, hidden: int):
        super().__init__()
        self.waves, self.frequency = waves, nn.Parameter(torch.full((hidden,), 10.0))
        self.layers = nn.ModuleList([nn.Linear(1 + 2 * waves, hidden), nn.Linear(hidden, hidden)])
        self.last = nn.Linear(hidden, width, bias=False)
        slow, fast = (-math.log(0.01) / part for part in (1.5, 0.3))  # down to .01 at that share of the length
        self.register_buffer("rates", torch.linspace(slow, fast, width), persistent=False)

    def forward(self, length: int) -> Tensor:
        t = torch.cat([torch.arange(length), torch.arange(-length, 0)]).to(self.rates) / length  # [2 length]
        phase = math.pi * t[:, None] * torch.arange(1, self.waves + 1).to(t)
        h = torch.cat([t[:, None], phase.cos(), phase.sin()], 1)
        for layer in self.layers:
            h = torch.sin(self.frequency * layer(h))
        kernel: Tensor = self.last(h) * torch.exp(-t.abs()[:, None] * self.rates)
        return kernel.mT


class HyenaConvolution(nn.Module):
    """The long convolution of tokens [B, T, width] with the filter, and each token times a weight."""

    def __init__(self, width: int, waves: int, hidden: int):
        super().__init__()
        self.filter = HyenaFilter(width, waves, hidden)
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, v: Tensor) -> Tensor:
        return long_convolution(v, self.filter(v.shape[1])) + self.bias * v


class HyenaLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width]: gates around what mixes all of them.

    Args:
        width: of the tokens.
        short: see Hyena.
        long: builds what mixes, [B, T, width] -> [B, T, width].
    """

    def __init__(self, width: int, short: int, long: Callable[[], nn.Module]):
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width)
        self.short = nn.Conv1d(3 * width, 3 * width, short, groups=3 * width, padding=short // 2)
        self.long = long()
        self.o_proj = nn.Linear(width, width)

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        first, second, v = self.short(self.in_proj(h).mT)[..., : h.shape[1]].mT.chunk(3, -1)
        out: Tensor = self.o_proj(self.long(v * first) * second)
        return out
