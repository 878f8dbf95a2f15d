"""Self-attention of tokens, every one with every one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.attention import attention
from gen.models.layers.rope import Rope

__all__ = ["Attention"]


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, width] -> [B, T, width]; q, k and v come from one product, in this order.

    qk_norm: RMS-normalise q and k within each head, with learned gains, which keeps long low-precision runs from
    diverging (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters"). bias: of q, k and v.
    A rope turns q and k, after their norm.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor, rope: Rope | None = None) -> Tensor:
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, width / heads]
        if rope is None and isinstance(self.q_norm, nn.Identity):
            whole: Tensor = self.proj(attention(qkv).flatten(2))  # [B, T, width]
            return whole
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        mixed = scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # [B, T, width]
        return out
