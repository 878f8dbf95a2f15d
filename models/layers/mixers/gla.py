"""Gated linear attention."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from gen.config.fields import check_fields
from gen.kernels.gated_linear_attention import gated_linear_attention
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["GLA", "GLALayer", "Gate"]


@dataclass(frozen=True)
class GLA:
    """Linear attention with a gate for each channel of the keys, in both directions (Yang et al. 2023).

    Attributes:
        heads: of it.
        expand_k: channels of keys over width; 0.5 as published.
        gate_rank: rank of the gate; 16 as published.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    expand_k: float = 0.5
    gate_rank: int = 16
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", expand_k="(0, 8]", gate_rank="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        keys = self.heads * max(1, int(self.expand_k * width / self.heads))
        return Both(functools.partial(GLALayer, width, self.heads, keys, self.gate_rank), self.shared)


class Gate(nn.Module):
    """Tokens to logarithms of gates near 1: logsigmoid(up(down(h))) / 16.

    Args:
        width: of the tokens.
        keys: channels of the gates.
        rank: between the two maps.
    """

    def __init__(self, width: int, keys: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, keys)

    def forward(self, h: Tensor) -> Tensor:
        return logsigmoid(self.up(self.down(h))) / 16


class GLALayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last; the output is normalised in each head.

    Args:
        width, heads: of the tokens and the attention.
        keys: channels of all heads' keys.
        rank: of the gate.
    """

    def __init__(self, width: int, heads: int, keys: int, rank: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, keys, bias=False), nn.Linear(width, keys, bias=False)
        self.v_proj, self.g_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gate = Gate(width, keys, rank)
        self.norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj, self.gate.down, self.gate.up):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)  # as published

    def forward(self, h: Tensor) -> Tensor:
        q, k, v, g = (
            of(h).unflatten(-1, (self.heads, -1)) for of in (self.q_proj, self.k_proj, self.v_proj, self.gate)
        )  # each [B, T, heads, d or e]
        mixed = self.norm(gated_linear_attention(q, k, v, g)).flatten(2)
        out: Tensor = self.o_proj(mixed * silu(self.g_proj(h)))
        return out
