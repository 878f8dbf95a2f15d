"""The transformer block whose norms and gates depend on a condition: adaLN-Zero (Peebles & Xie 2022)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gen.models.layers.attention import Attention
from gen.tap import Tap

__all__ = ["Block", "FinalLayer", "Mlp", "modulate", "visit"]


def visit(tap: Tap | None, site: str, compute: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """compute(h), or what the tap makes of it."""
    return compute(h) if tap is None else tap(site, compute, h)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h [B, T, width] times 1 + scale, plus shift, both [B, width]."""
    return h * (1 + scale[:, None]) + shift[:, None]


class Mlp(nn.Module):
    """Each token by itself: width -> hidden -> width with GELU (tanh form)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU("tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(h)))
        return out


class Block(nn.Module):
    """What a block adds to the tokens h [B, T, width] under the condition c [B, width]; zero when freshly made.

    Sites, `site` being the block's own name: "{site}.attn" and "{site}.mlp" are what the two halves add, gates and all;
    inside them "{site}.attn.raw" and "{site}.mlp.raw" are the bare modules from modulated input to ungated output.
    """

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool = False, mlp_norm_eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=mlp_norm_eps)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None) -> Tensor:
        modulation: Tensor = self.adaLN_modulation(c)  # [B, 6 width]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, 1)  # each [B, width]

        def attn(h: Tensor) -> Tensor:
            h = modulate(self.norm1(h), shift1, scale1)
            return gate1[:, None] * visit(tap, f"{site}.attn.raw", self.attn, h)

        def mlp(h: Tensor) -> Tensor:
            h = modulate(self.norm2(h), shift2, scale2)
            return gate2[:, None] * visit(tap, f"{site}.mlp.raw", self.mlp, h)

        first = visit(tap, f"{site}.attn", attn, h)  # [B, T, width]
        return first + visit(tap, f"{site}.mlp", mlp, h + first)


class FinalLayer(nn.Module):
    """Tokens [B, T, width] under the condition c [B, width] to numbers [B, T, out]; zero when freshly made."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        out: Tensor = self.linear(modulate(self.norm_final(h), shift, scale))
        return out
