"""The transformer block whose norms and gates depend on a condition, adaLN-Zero (Peebles & Xie 2022); and variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import silu

from gen.diffusion.tap import Tap, call_site
from gen.kernels.norm import gated_residual, gated_residual_norm, modulated_norm
from gen.models.layers.attention import Attention
from gen.models.layers.rope import Rope

__all__ = ["Block", "FinalLayer", "Mlp", "SplitSwiGLU", "SwiGLU", "modulate", "run_block"]


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h [B, T, width] times 1 + scale, plus shift; both [B, width], or [B, T, width] to differ by token."""
    if shift.ndim == 2:
        shift, scale = shift[:, None], scale[:, None]
    return h * (1 + scale) + shift


class Mlp(nn.Module):
    """Each token by itself: width -> hidden -> width with GELU (tanh form)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU("tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(h)))


class SwiGLU(nn.Module):
    """Each token by itself: w3(silu(a) * b) with a and b the halves of w12(h) (Shazeer 2020; DINOv2's weights)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.w12(h).chunk(2, -1)
        return self.w3(silu(a) * b)


class SplitSwiGLU(nn.Module):
    """Each token by itself: w2(silu(w1(h)) * w3(h)), without offsets (Shazeer 2020; Llama's weights)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.w2(silu(self.w1(h)) * self.w3(h))


class Block(nn.Module):
    """What a block adds to the tokens h [B, T, width]; zero when freshly made as DiT is.

    The condition c is [B, width], or [B, T, width] to differ by token. rms: norms by root mean square with learned
    gains, for layer norms without. silu: whether c passes through SiLU first. bias: of q, k and v.
    Sites, `site` being the block's own name: "{site}.attn" and "{site}.mlp" are what the two halves add, gates and all;
    inside them "{site}.attn.raw" and "{site}.mlp.raw" are the bare modules from modulated input to ungated output.
    fused: where no tap looks, `through` takes norms, gates and sums in the fewest passes over memory, which rounds
    otherwise.
    """

    fused = False

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        qk_norm: bool = False,
        mlp_norm_eps: float = 1e-6,
        *,
        mlp: Callable[[int, int], nn.Module] = Mlp,
        rms: bool = False,
        silu: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        self.norm1 = _norm(width, 1e-6, rms)
        self.attn = Attention(width, heads, qk_norm, bias)
        self.norm2 = _norm(width, mlp_norm_eps, rms)
        self.mlp = mlp(width, hidden)
        self.adaLN_modulation = _modulation(width, 6, silu)

    def forward(self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None, rope: Rope | None = None) -> Tensor:
        first, second = self.residuals(h, c, site, tap, rope)
        return first + second

    def residuals(
        self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None, rope: Rope | None = None
    ) -> tuple[Tensor, Tensor]:
        """What attention adds, and then what the MLP does."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(c)

        def attn(h: Tensor) -> Tensor:
            h = modulate(self.norm1(h), shift1, scale1)
            return gate1 * call_site(tap, f"{site}.attn.raw", lambda h: self.attn(h, rope), h)

        def mlp(h: Tensor) -> Tensor:
            h = modulate(self.norm2(h), shift2, scale2)
            return gate2 * call_site(tap, f"{site}.mlp.raw", self.mlp, h)

        first = call_site(tap, f"{site}.attn", attn, h)  # [B, T, width]
        return first, call_site(tap, f"{site}.mlp", mlp, h + first)

    def fused_forward(self, h: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        """The tokens after the block: h and both halves, in fused operations."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(c)
        norm1: Any = self.norm1
        norm2: Any = self.norm2
        kind: Literal["rms", "layer"] = "rms" if isinstance(norm1, nn.RMSNorm) else "layer"
        mixed = self.attn(modulated_norm(h, scale1, shift1, norm1.weight, kind, norm1.eps), rope)
        h, normed = gated_residual_norm(h, mixed, gate1, scale2, shift2, norm2.weight, kind, norm2.eps)
        return gated_residual(h, self.mlp(normed), gate2)

    def _modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """shift, scale and gate of both halves, each [B, 1 or T, width]."""
        modulation: Tensor = self.adaLN_modulation(c)  # [B, 6 width] or [B, T, 6 width]
        return (modulation[:, None] if modulation.ndim == 2 else modulation).chunk(6, -1)


def run_block(block: Any, h: Tensor, c: Any, i: int, tap: Tap | None, rope: Rope | None = None) -> Tensor:
    """Tokens h [B, T, width] after block i: the site "hidden.{i}", and inside it "blocks.{i}", what is added."""
    site = f"blocks.{i}"
    if tap is None and getattr(block, "fused", False):
        return block.fused_forward(h, c, rope)

    def after(h: Tensor) -> Tensor:
        parts: list[Tensor] = []

        def added(h: Tensor) -> Tensor:
            first, second = block.residuals(h, c, site, tap, rope)
            parts[:] = first, second, first + second
            return parts[2]

        out = call_site(tap, site, added, h)
        # (h + first) + second is what is published, to the bit; a tap may have put something else in their sum's place.
        return h + parts[0] + parts[1] if parts and out is parts[2] else h + out

    return call_site(tap, f"hidden.{i}", after, h)


class FinalLayer(nn.Module):
    """Tokens [B, T, width] under a condition c to numbers [B, T, out]; zero when freshly made. Options as in Block."""

    def __init__(self, width: int, out: int, *, rms: bool = False, silu: bool = True):
        super().__init__()
        self.norm_final = _norm(width, 1e-6, rms)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = _modulation(width, 2, silu)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(modulate(self.norm_final(h), shift, scale))


def _norm(width: int, eps: float, rms: bool) -> nn.Module:
    return nn.RMSNorm(width, eps=eps) if rms else nn.LayerNorm(width, elementwise_affine=False, eps=eps)


def _modulation(width: int, parts: int, silu: bool) -> nn.Sequential:
    linear = nn.Linear(width, parts * width)
    return nn.Sequential(nn.SiLU(), linear) if silu else nn.Sequential(linear)
