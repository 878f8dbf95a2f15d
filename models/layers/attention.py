"""Self-attention of tokens, every one with every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from gen.kernels.attention import packed_attention
from gen.models.layers.rope import Rope

__all__ = ["Attention", "QKNorm"]

QKNorm = bool | Literal["layer"]


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, width] -> [B, T, width]; q, k and v come from one product, in this order.

    qk_norm: RMS-normalise q and k within each head, with learned gains, which keeps long low-precision runs from
    diverging (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters"); "layer" for layer norms
    with gain and bias, as timm's and REPA's have them. bias: of q, k and v.
    A rope rotates q and k, after their norm.

    Attributes:
        attend: the operation itself, gen.kernels.attention.packed_attention, which an engine may replace.
    """

    attend: Callable[..., Tensor] = packed_attention

    def __init__(self, width: int, heads: int, qk_norm: QKNorm = False, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm, self.k_norm = (_norm(width // heads, qk_norm) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor, rope: Rope | None = None) -> Tensor:
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, width / heads]
        options: dict[str, object] = {}  # norm and rotation of q and k
        if isinstance(norm := self.q_norm, nn.RMSNorm):
            options = {"q_gain": norm.weight, "k_gain": self.k_norm.weight, "eps": norm.eps}
        elif isinstance(norm, nn.LayerNorm):
            q, k, v = qkv.unbind(2)
            qkv = torch.stack((norm(q), self.k_norm(k), v), 2)
        if rope is not None:
            options |= {"cos": rope.freqs_cos, "sin": rope.freqs_sin}
        return self.proj(self.attend(qkv, **options).flatten(2))  # [B, T, width]


def _norm(dim: int, kind: QKNorm) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(dim)
    return nn.RMSNorm(dim, eps=1e-6) if kind else nn.Identity()
