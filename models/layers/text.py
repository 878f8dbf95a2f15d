"""The block of text transformers: Llama's, with attention to whatever places a rule or a memory allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gen.models.layers.block import SplitSwiGLU, visit
from gen.predict import Memory
from gen.tap import Tap

__all__ = ["Sight", "TextAttention", "TextBlock", "angles", "turn"]


def angles(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [..., T, dim / 2] of the angles by which positions [..., T] turn the channels of one head.

    Pair i of dim / 2 turns by position * theta^(-2 i / dim) radians (RoFormer, Su et al. 2021). float32 whatever the
    network's precision, as the published models were trained with.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
    turns = positions[..., None].float() * (1.0 / theta**exponents)
    return turns.cos(), turns.sin()


def turn(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """h [B, heads, T, d] with channels i and i + d / 2 turned as a pair (Llama's half-split layout)."""
    a, b = h.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(h.dtype)


@dataclass(frozen=True, eq=False)
class Sight:
    """What the attention of every layer shares: angles of the computed places, and what each of them sees.

    cos, sin [B or 1, 1, F, d / 2]. seen: bool [B or 1, 1, F, S], None for everything. With a memory, new keys and
    values are written at places [B, F] of it, and its first `upto` places are S.
    """

    cos: Tensor
    sin: Tensor
    seen: Tensor | None = None
    memory: Memory | None = None
    places: Tensor | None = None
    upto: int = 0

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, S, d] that a layer attends to, when k and v [B, heads, F, d] are the new ones."""
        if self.memory is None or self.places is None:
            return k, v
        index = self.places[:, None, :, None].expand_as(k)
        out = []
        for store, new in ((self.memory.keys[layer], k), (self.memory.values[layer], v)):
            store.scatter_(2, index, new.to(store.dtype))
            out.append(store[:, :, : self.upto].to(new.dtype))
        return out[0], out[1]


class TextAttention(nn.Module):
    """Attention whose keys and values have heads of their own, each shared by several of q (GQA, Ainslie et al. 2023).

    bias: of q, k and v. qk_norm: RMS-normalise q and k within each head, before they are turned (Qwen3).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool, qk_norm: bool, eps: float):
        super().__init__()
        dim = width // heads
        self.heads, self.kv_heads = heads, kv_heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, kv_heads * dim, bias=bias)
        self.v = nn.Linear(width, kv_heads * dim, bias=bias)
        self.q_norm = nn.RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, sight: Sight, layer: int) -> Tensor:
        q = self.q_norm(self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [B, heads, F, d]
        k = self.k_norm(self.k(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2))  # [B, kv_heads, F, d]
        v = self.v(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q, k = turn(q, sight.cos, sight.sin), turn(k, sight.cos, sight.sin)
        k, v = sight.remember(layer, k, v)  # [B, kv_heads, S, d]
        group = self.heads // self.kv_heads
        if group > 1 and sight.seen is not None:  # no fast kernel takes both shared heads and a mask
            k, v, group = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), 1
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=sight.seen, enable_gqa=group > 1)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))  # [B, F, width]
        return out


class TextBlock(nn.Module):
    """What block `layer` adds to h [B, F, width]: attention, then SwiGLU, each after an RMS norm.

    Sites: "{site}.attn" and "{site}.mlp", what the two halves add.
    """

    def __init__(
        self, layer: int, width: int, heads: int, kv_heads: int, hidden: int, bias: bool, qk_norm: bool, eps: float
    ):
        super().__init__()
        self.layer = layer
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attn = TextAttention(width, heads, kv_heads, bias, qk_norm, eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.mlp = SplitSwiGLU(width, hidden)

    def halves(
        self, h: Tensor, sight: Sight, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """What attention adds, and then what the MLP does; see gen.models.layers.block.through."""
        first = visit(tap, f"{site}.attn", lambda h: self.attn(self.norm1(h), sight, self.layer), h)
        return first, visit(tap, f"{site}.mlp", lambda h: self.mlp(self.norm2(h)), h + first)
