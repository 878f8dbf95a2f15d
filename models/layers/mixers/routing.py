"""Attention within clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from gen.config.fields import check_fields

__all__ = ["Routing", "RoutingLayer", "cluster_loss"]


@dataclass(frozen=True)
class Routing:
    """Softmax attention of queries to keys that are nearest to the same mean (Roy et al. 2020, arXiv 2003.05997).

    Each of c clusters takes the T / c queries and, separately, the T / c keys of a row that point most in its mean's
    direction, so that a token may be in several or in none; one in several has the mean of what they give. The means
    follow the queries and keys by online k-means: in each update they descend the distance of every vector to its
    nearest mean, by the run's optimiser instead of the published moving average. All heads are routed,
    where the paper has half of them look around a token instead.

    Attributes:
        heads: of the attention.
        clusters: c, of each head; with 1 it is attention.
    """

    heads: int = 4
    clusters: int = 4

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", clusters="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return RoutingLayer(width, self.heads, self.clusters)


def cluster_loss(x: Tensor, means: Tensor) -> Tensor:
    """Return the mean squared distance of vectors to their nearest means, 0-d.

    Args:
        x: of length 1, [B, H, T, d].
        means: of length 1, [H, c, d].
    """
    return (2 - 2 * (x @ means.mT).amax(-1)).mean()


class _Follow(torch.autograd.Function):
    """h as it is, and in the backward pass the gradient of a loss, whatever is made of h."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, loss: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())

    @staticmethod
    def jvp(ctx: Any, h: Tensor, loss: Tensor) -> Tensor:
        return h.view_as(h)


class RoutingLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width].

    Args:
        width, heads, clusters: see Routing.
    """

    def __init__(self, width: int, heads: int, clusters: int):
        super().__init__()
        self.heads, self.clusters = heads, clusters
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.means = nn.Parameter(torch.randn(heads, clusters, width // heads))

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        means = normalize(self.means, dim=-1)
        size = -(-h.shape[1] // self.clusters)
        near_q, near_k = (self._members(x, means, size) for x in (q, k))  # each [B, heads, c, size, 1]
        inside = scaled_dot_product_attention(_gather(q, near_q), _gather(k, near_k), _gather(v, near_k)).flatten(2, 3)
        where = near_q.flatten(2, 3).expand_as(inside)  # [B, heads, c size, d]
        total = torch.zeros_like(q).scatter_add(2, where, inside)
        count = torch.zeros_like(q).scatter_add(2, where, torch.ones_like(inside))
        mixed: Tensor = self.proj((total / count.clamp(min=1)).transpose(1, 2).flatten(2))
        if torch.is_grad_enabled():
            both = normalize(torch.cat([q, k], 2).detach(), dim=-1)
            mixed = _Follow.apply(mixed, cluster_loss(both, means))  # type: ignore[no-untyped-call]
        return mixed

    def _members(self, x: Tensor, means: Tensor, size: int) -> Tensor:
        """Return which tokens of each row are nearest to each mean, int64 [B, heads, c, size, 1]."""
        return (normalize(x, dim=-1) @ means.mT).mT.topk(size, -1).indices[..., None]


def _gather(x: Tensor, where: Tensor) -> Tensor:
    """Return tokens x [B, heads, T, d] of each cluster, [B, heads, c, size, d]."""
    many = x[:, :, None].expand(-1, -1, where.shape[2], -1, -1)
    return many.gather(3, where.expand(*where.shape[:-1], x.shape[-1]))
