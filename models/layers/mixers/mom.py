"""Mixture of memories."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.kernels.gated_linear_attention import gated_linear_attention
from gen.models.layers.mixers.gla import Gate
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["MoM", "MoMLayer", "MoMRouter"]


@dataclass(frozen=True)
class MoM:
    """Several memories, each of the tokens that a router sends to it, in both directions (Du et al. 2025, 2502.13685).

    Every memory is a gated linear attention over the tokens of its own alone: for others nothing happens in it, not
    even forgetting. A token reads those that it is sent to, by its router's weights, and one that all tokens share. The
    objective balanced keeps its memories in even use.

    Attributes:
        heads: of each memory.
        memories: number of them.
        chosen: memories of a token.
        expand_k: channels of keys over width.
        gate_rank: rank of the gates.
        share: whether there is a memory of all tokens besides.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    memories: int = 4
    chosen: int = 2
    expand_k: float = 0.5
    gate_rank: int = 16
    share: bool = True
    shared: bool = True

    def __post_init__(self) -> None:
        one = dict.fromkeys(("heads", "memories", "chosen", "gate_rank"), "[1, inf)")
        check_fields(self, expand_k="(0, 8]", **one)
        if self.chosen > self.memories:
            raise UserError(f"MoM.chosen {self.chosen}; allowed: at most MoM.memories, {self.memories}")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(MoMLayer, width, self), self.shared)


class MoMRouter(nn.Linear):
    """Tokens h [B, T, width] -> memories int64 [B, T, chosen], their weights, of sum 1, and scores [B, T, memories].

    Attributes:
        is_router: what gen.training.objectives.lib.routing knows it by.
    """

    is_router = True

    def __init__(self, width: int, memories: int, chosen: int):
        super().__init__(width, memories, bias=False)
        self.chosen = chosen

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(h)
        values, where = logits.topk(self.chosen, -1)
        return where, values.softmax(-1), logits.softmax(-1)


class MoMLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last.

    Args:
        width: of the tokens.
        spec: the hyperparameters.
    """

    def __init__(self, width: int, spec: MoM):
        super().__init__()
        self.spec, keys = spec, spec.heads * max(1, int(spec.expand_k * width / spec.heads))
        count = spec.memories + spec.share  # the last is that of all tokens
        self.router = MoMRouter(width, spec.memories, spec.chosen)
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.ModuleList(nn.Linear(width, keys, bias=False) for _ in range(count))
        self.v_proj = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))
        self.gates = nn.ModuleList(Gate(width, keys, spec.gate_rank) for _ in range(count))
        self.g_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width // spec.heads, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        memories, shares, _ = self.router(h)
        none = h.new_zeros(*h.shape[:2], self.spec.memories)
        weights, routed = none.scatter(-1, memories, shares), none.scatter(-1, memories, 1.0)  # [B, T, M]
        if self.spec.share:
            weights, routed = (torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in (weights, routed))
        q = self._heads(self.q_proj(h))
        mixed = torch.zeros_like(self._heads(h))
        for m, parts in enumerate(zip(self.k_proj, self.v_proj, self.gates, strict=True)):
            k, v, g = (self._heads(of(h)) for of in parts)
            here = routed[..., m, None, None]
            mixed = mixed + weights[..., m, None, None] * gated_linear_attention(q, k * here, v, g * here)
        out: Tensor = self.o_proj(self.norm(mixed).flatten(2) * silu(self.g_proj(h)))
        return out

    def _heads(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (self.spec.heads, -1))
