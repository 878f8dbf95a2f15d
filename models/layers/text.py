"""The block of text transformers: Llama's, with attention to whatever a rule, a mask or a KV cache allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import BIDIRECTIONAL, MaskRule, attention
from gen.kernels.rope import norm_rope
from gen.models.layers.block import SplitSwiGLU
from gen.models.layers.experts import Experts, Mixture
from gen.text.contracts import KvCache

__all__ = ["AttentionContext", "RotaryNorm", "TextAttention", "TextBlock", "rope_angles", "rows_at"]


def rope_angles(position_ids: Tensor, dim: int, theta: float, rotary: int | None = None) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles of one head, float32 [..., T, dim] each.

    Channels i and i + dim / 2 are rotated as a pair (Llama's layout), by position * theta^(-2 i / rotary) radians
    (RoFormer, Su et al. 2021). float32 whatever the network's precision, as the published models were trained with.

    Args:
        position_ids: int64 [..., T].
        dim: channels of a head.
        theta: base of the angles.
        rotary: number of channels that are rotated, pairs i < rotary / 2; the angles of others are 0. None for all.
    """
    rotary = dim if rotary is None else rotary
    exponents = torch.arange(0, rotary, 2, device=position_ids.device).float() / rotary
    angles = pad(position_ids[..., None].float() * (1.0 / theta**exponents), (0, (dim - rotary) // 2))
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """Inputs that the attention of every layer shares: rotary angles, mask and KV cache.

    Attributes:
        cos, sin: angles of the F computed positions, [F, d] or [B, F, d].
        rule, mask: what a position attends to, mask bool [B or 1, F or 1, S] or None, as in
            gen.kernels.attention.attention.
        kv_cache: new keys and values are written into it, and its first `stop` slots are the S that are attended to;
            None: S = F.
        positions: indices of the computed positions in the cache, int64 [B, F].
        stop: see kv_cache.
        documents: the document of each computed position, int64 [B, F], within which attention stays; None for one.
    """

    cos: Tensor
    sin: Tensor
    rule: MaskRule = BIDIRECTIONAL
    mask: Tensor | None = None
    kv_cache: KvCache | None = None
    positions: Tensor | None = None
    stop: int = 0
    documents: Tensor | None = None

    def at(self, columns: Tensor) -> AttentionContext:
        """Return the context in which only some of the computed positions attend, columns [B, W]; without documents."""
        mask, rule = self.mask, self.rule
        if mask is not None and mask.shape[1] > 1:
            mask = rows_at(mask, columns)
        if rule != BIDIRECTIONAL:
            allowed = rule.allowed(columns[..., None], torch.arange(self.cos.shape[-2], device=columns.device))
            mask = allowed if mask is None else mask & allowed
        return AttentionContext(rows_at(self.cos, columns), rows_at(self.sin, columns), BIDIRECTIONAL, mask)

    def update_cache(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a layer attends to, [B, S, heads, d] each, once k and v [B, F, heads, d] are in the cache."""
        if self.kv_cache is None or self.positions is None:
            return k, v
        index = self.positions[..., None, None].expand_as(k)
        out = []
        for store, new in ((self.kv_cache.keys[layer], k), (self.kv_cache.values[layer], v)):
            stored = store.transpose(1, 2)  # [B, N + 1, heads, d]
            stored.scatter_(1, index, new.to(store))
            out.append(stored[:, : self.stop].to(new))
        return out[0], out[1]


def rows_at(values: Tensor, columns: Tensor) -> Tensor:
    """Return rows [B, W, d] of a table.

    Args:
        values: the table, [F, d], or [B or 1, F, d].
        columns: which of the F rows, int64 [B, W].
    """
    index = columns.to(values.device)[..., None].expand(-1, -1, values.shape[-1])  # blocks may lie on several devices
    return values.expand(len(columns), -1, -1).gather(1, index)


class RotaryNorm(nn.Module):
    """Heads [B, F, heads, d], RMS-normalised with learned gains if there are any, and rotated by their positions."""

    weight: nn.Parameter | None

    def __init__(self, dim: int, eps: float, norm: bool):
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(dim)) if norm else None)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return norm_rope(h, self.weight, self.eps, cos, sin, "split")


class TextAttention(nn.Module):
    """Attention whose keys and values have heads of their own, each shared by several of q (GQA, Ainslie et al. 2023).

    dim: channels of a head. bias: of q, k and v. qk_norm: RMS-normalise q and k within each head, before they are
    rotated (Qwen3).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, dim: int, bias: bool, qk_norm: bool, eps: float):
        super().__init__()
        self.dim = dim
        self.q = nn.Linear(width, heads * dim, bias=bias)
        self.k = nn.Linear(width, kv_heads * dim, bias=bias)
        self.v = nn.Linear(width, kv_heads * dim, bias=bias)
        self.q_norm = RotaryNorm(dim, eps, qk_norm)
        self.k_norm = RotaryNorm(dim, eps, qk_norm)
        self.o = nn.Linear(heads * dim, width, bias=False)

    def forward(
        self, h: Tensor, context: AttentionContext, layer: int, some: tuple[Tensor, AttentionContext] | None = None
    ) -> Tensor:
        asking, own = (h, context) if some is None else (rows_at(h, some[0]), some[1])
        # Heads are counted by what the products give: a process may have some of them only.
        pairs = (self.q, asking), (self.k, h), (self.v, h)
        q, k, v = (product(x).unflatten(-1, (-1, self.dim)) for product, x in pairs)
        q = self.q_norm(q, own.cos, own.sin)  # [B, F, heads, d]
        k = self.k_norm(k, context.cos, context.sin)  # [B, F, kv_heads, d]
        k, v = context.update_cache(layer, k, v)  # [B, S, kv_heads, d]
        # Blocks may lie on several devices.
        mask, documents = (None if t is None else t.to(q.device) for t in (own.mask, own.documents))
        out = attention(q, k, v, own.rule, attn_mask=mask, documents=documents)
        return self.o(out.flatten(2))  # [B, F, width]


class TextBlock(nn.Module):
    """The residuals of block `layer` to h [B, F, width]: attention, then SwiGLU, each after an RMS norm.

    dim: channels of a head; None for width / heads. experts: in place of the SwiGLU with `hidden` channels.
    Sites: "{site}.attn" and "{site}.mlp", what the two halves add.

    Attributes:
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        layer: int,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        bias: bool,
        qk_norm: bool,
        eps: float,
        dim: int | None = None,
        experts: Experts | None = None,
    ):
        super().__init__()
        self.layer = layer
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attn = TextAttention(width, heads, kv_heads, dim or width // heads, bias, qk_norm, eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.mlp = SplitSwiGLU(width, hidden) if experts is None else Mixture(width, experts)

    def residuals(
        self, h: Tensor, context: AttentionContext, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual of the attention and that of the MLP; see gen.models.layers.block.run_block."""
        first = call_site(tap, f"{site}.attn", lambda h: self.attn(self.norm1(h), context, self.layer), h)
        return first, call_site(tap, f"{site}.mlp", lambda h: self.mlp(self.norm2(h)), h + first)

    def at(self, h: Tensor, context: AttentionContext, columns: Tensor, own: AttentionContext) -> Tensor:
        """Return the block's output at some positions, [B, W, width]: of others there are keys and values alone.

        h, context: as of the block. columns: which positions, int64 [B, W]. own: the context at them.
        """
        first = self.attn(self.norm1(h), context, self.layer, (columns, own))
        some = rows_at(h, columns)
        return some + first + self.mlp(self.norm2(some + first))
