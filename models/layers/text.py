"""The block of text transformers: Llama's, with attention to whatever a rule, a mask or a KV cache allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import BIDIRECTIONAL, MaskRule, attention
from gen.kernels.rope import norm_rope
from gen.models.layers.block import SplitSwiGLU
from gen.text.contracts import KvCache

__all__ = ["AttentionContext", "TextAttention", "TextBlock", "rope_angles"]


def rope_angles(position_ids: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles of one head, float32 [..., T, dim] each.

    Channels i and i + dim / 2 are rotated as a pair (Llama's layout), by position * theta^(-2 i / dim) radians
    (RoFormer, Su et al. 2021). float32 whatever the network's precision, as the published models were trained with.

    Args:
        position_ids: int64 [..., T].
        dim: channels of a head.
        theta: base of the angles.
    """
    exponents = torch.arange(0, dim, 2, device=position_ids.device).float() / dim
    angles = position_ids[..., None].float() * (1.0 / theta**exponents)
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

    def update_cache(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a layer attends to, [B, S, heads, d] each, once k and v [B, F, heads, d] are in the cache."""
        if self.kv_cache is None or self.positions is None:
            return k, v
        index = self.positions[..., None, None].expand_as(k)
        out = []
        for store, new in ((self.kv_cache.keys[layer], k), (self.kv_cache.values[layer], v)):
            stored = store.transpose(1, 2)  # [B, N + 1, heads, d]
            stored.scatter_(1, index, new.to(store.dtype))
            out.append(stored[:, : self.stop].to(new.dtype))
        return out[0], out[1]


class TextAttention(nn.Module):
    """Attention whose keys and values have heads of their own, each shared by several of q (GQA, Ainslie et al. 2023).

    bias: of q, k and v. qk_norm: RMS-normalise q and k within each head, before they are rotated (Qwen3).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool, qk_norm: bool, eps: float):
        super().__init__()
        dim = width // heads
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, kv_heads * dim, bias=bias)
        self.v = nn.Linear(width, kv_heads * dim, bias=bias)
        self.q_norm = nn.RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim, eps=eps) if qk_norm else nn.Identity()
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, context: AttentionContext, layer: int) -> Tensor:
        q = self._rotated(self.q(h).unflatten(-1, (self.heads, -1)), self.q_norm, context)  # [B, F, heads, d]
        k = self._rotated(self.k(h).unflatten(-1, (self.kv_heads, -1)), self.k_norm, context)  # [B, F, kv_heads, d]
        k, v = context.update_cache(layer, k, self.v(h).unflatten(-1, (self.kv_heads, -1)))  # [B, S, kv_heads, d]
        out = attention(q, k, v, context.rule, attn_mask=context.mask, documents=context.documents)
        return self.o(out.flatten(2))  # [B, F, width]

    def _rotated(self, h: Tensor, norm: nn.Module, context: AttentionContext) -> Tensor:
        """Return heads [B, F, heads, d], normalised if they are to be, and rotated by their positions."""
        gain = norm.weight if isinstance(norm, nn.RMSNorm) else None
        return norm_rope(h, gain, self.eps, context.cos, context.sin, "split")


class TextBlock(nn.Module):
    """The residuals of block `layer` to h [B, F, width]: attention, then SwiGLU, each after an RMS norm.

    Sites: "{site}.attn" and "{site}.mlp", what the two halves add.

    Attributes:
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(
        self, layer: int, width: int, heads: int, kv_heads: int, hidden: int, bias: bool, qk_norm: bool, eps: float
    ):
        super().__init__()
        self.layer = layer
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attn = TextAttention(width, heads, kv_heads, bias, qk_norm, eps)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.mlp = SplitSwiGLU(width, hidden)

    def residuals(
        self, h: Tensor, context: AttentionContext, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual of the attention and that of the MLP; see gen.models.layers.block.run_block."""
        first = call_site(tap, f"{site}.attn", lambda h: self.attn(self.norm1(h), context, self.layer), h)
        return first, call_site(tap, f"{site}.mlp", lambda h: self.mlp(self.norm2(h)), h + first)
