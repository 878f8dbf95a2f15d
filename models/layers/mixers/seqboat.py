"""Attention of few tokens among all: those that a router wakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from gen.config.fields import check_fields
from gen.kernels.long_convolution import long_convolution

__all__ = ["SeqBoat", "SeqBoatAverages", "SeqBoatLayer"]


@dataclass(frozen=True)
class SeqBoat:
    """Moving averages for all tokens, and gated attention for those that need it (Ren et al. 2023, arXiv 2306.11197).

    m = silu of moving averages of h in both directions. A router's softmax p over two logits of m_t wakes a token where
    p_t > 1/2; those awake are laid side by side, in order, and attend to the `window` next awake ones on either side;
    what they find is put back, times p_t, which is how the router learns, and added to a map of m_t. What differs from
    the paper: softmax attention without a bias of position, which the averages give; SiLU and residual outside are the
    block's.

    Attributes:
        size: channels of queries and keys.
        window: awake tokens on either side that one attends to; 0 for all.
        states: averages of each channel and direction.
    """

    size: int = 16
    window: int = 0
    states: int = 2

    def __post_init__(self) -> None:
        check_fields(self, size="[1, inf)", window="[0, inf)", states="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return SeqBoatLayer(width, self)


class SeqBoatAverages(nn.Module):
    """Exponential moving averages of each channel in both directions, h [B, T, width] -> [B, T, width].

    The kernel at distance l is sum_n p_n b_n (1 - p_n s_n)^l c_n / sqrt(states), p and s sigmoids (MEGA, Ma et al.
    2022); before a token from the one before it on, as the other direction has the token itself.

    Args:
        width: of the tokens.
        states: n, of each channel and direction.
    """

    def __init__(self, width: int, states: int):
        super().__init__()
        sign = torch.ones(2, width, states)
        sign[..., 1::2] = -1
        self.take, self.lose = (nn.Parameter(0.2 * torch.randn(2, width, states)) for _ in range(2))
        self.into, self.out = nn.Parameter(sign + 0.02 * torch.randn_like(sign)), nn.Parameter(torch.randn_like(sign))
        self.skip = nn.Parameter(torch.randn(width))

    def kernels(self, length: int) -> Tensor:
        """Return the kernels of both directions, [2, width, length]."""
        p = self.take.sigmoid()
        kept = torch.log1p(-p * self.lose.sigmoid())[..., None] * torch.arange(length).to(p)
        scale = p * self.into * self.out / p.shape[-1] ** 0.5
        return (scale[..., None] * kept.exp()).sum(2)

    def forward(self, h: Tensor) -> Tensor:
        past, future = self.kernels(h.shape[1])
        both = torch.cat([past, torch.zeros_like(future[:, :1]), future[:, :-1].flip(1)], 1)
        return long_convolution(h, both) + self.skip * h


class SeqBoatLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width].

    Args:
        width: of the tokens.
        spec: the hyperparameters.
    """

    def __init__(self, width: int, spec: SeqBoat):
        super().__init__()
        self.spec, self.averages = spec, SeqBoatAverages(width, spec.states)
        self.router, self.plain = nn.Linear(width, 2), nn.Linear(width, width)
        self.zrv = nn.Linear(width, spec.size + 2 * width)
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(2, spec.size))  # of queries and of keys
        self.shift = nn.Parameter(torch.zeros(2, spec.size))
        self.o_proj = nn.Linear(width, width)

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        m = silu(self.averages(h))
        p = self.router(m).softmax(-1)[..., 1:]  # [B, T, 1]
        awake = p[..., 0] > 0.5
        order = (~awake).to(torch.uint8).argsort(dim=1, stable=True)  # awake tokens first, as they lie
        count = awake.sum(1)
        longest = h.shape[1] if h.device.type == "meta" else max(1, int(count.max()))
        where = order[:, :longest, None]
        found = self.attend(m.gather(1, where.expand(-1, -1, m.shape[-1])), count)
        there = torch.arange(longest, device=h.device) < count[:, None]  # [B, longest]
        weight = p.gather(1, where) * there[..., None]
        out: Tensor = self.plain(m).scatter_add(1, where.expand_as(found), weight * found)
        return out

    def attend(self, m: Tensor, count: Tensor) -> Tensor:
        """Return the gated attention of rows m [B, n, width], of which the first `count` [B] are tokens."""
        z, r, v = silu(self.zrv(m)).split([self.spec.size, m.shape[-1], m.shape[-1]], -1)
        q, k = (z * scale + shift for scale, shift in zip(self.scale, self.shift, strict=True))
        rank = torch.arange(m.shape[1], device=m.device)
        seen = (rank < count[:, None])[:, None] | torch.eye(len(rank), dtype=torch.bool, device=m.device)
        if self.spec.window:
            seen = seen & ((rank[:, None] - rank).abs() <= self.spec.window)
        return self.o_proj(scaled_dot_product_attention(q, k, v, seen) * r)
