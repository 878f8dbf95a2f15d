"""The gated delta rule."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize, silu

from gen.config.fields import check_fields
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["Delta", "DeltaLayer", "delta_rule"]


@dataclass(frozen=True)
class Delta:
    """A memory that is corrected towards what it should have said, in both directions (gated DeltaNet).

    M_t = a_t M_(t-1) (1 - b_t k_t k_t^T) + b_t v_t k_t^T, o_t = M_t q_t (Yang et al. 2024, arXiv 2412.06464): linear
    memory at test time (Titans, Behrouz et al. 2024) with its momentum at 0.

    Attributes:
        heads: of it.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(DeltaLayer, width, self.heads), self.shared)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, rate: Tensor) -> Tensor:
    """Return o_t = M_t q_t, [B, T, H, e], token by token.

    Args:
        q, k: [B, T, H, d].
        v: [B, T, H, e].
        keep, rate: a and b of the rule, [B, T, H].
    """
    memory = v.new_zeros(*v.shape[:1], *v.shape[2:], k.shape[-1])  # [B, H, e, d]
    outs = []
    for t in range(q.shape[1]):
        key, old = k[:, t, :, None], keep[:, t, :, None, None] * memory  # [B, H, 1, d], [B, H, e, d]
        wrong = v[:, t, :, :, None] - (old * key).sum(-1, keepdim=True)  # [B, H, e, 1]
        memory = old + rate[:, t, :, None, None] * wrong * key
        outs.append((memory * q[:, t, :, None]).sum(-1))
    return torch.stack(outs, 1)


class DeltaLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last; queries and keys are of unit length.

    Args:
        width, heads: of the tokens and the memory.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.keep, self.rate = nn.Linear(width, heads), nn.Linear(width, heads)
        self.g_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = silu(self.qkv(h)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        keep = (logsigmoid(self.keep(h)) / 16).exp()
        mixed = delta_rule(normalize(q, dim=-1), normalize(k, dim=-1), v, keep, self.rate(h).sigmoid())
        out: Tensor = self.o_proj(self.norm(mixed).flatten(2) * silu(self.g_proj(h)))
        return out
