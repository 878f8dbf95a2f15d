"""The transformer block whose norms and gates depend on a condition, adaLN-Zero (Peebles & Xie 2022); and variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import silu

from gen.diffusion.tap import Tap, call_site
from gen.kernels.norm import gated_residual, gated_residual_norm, modulated_norm
from gen.models.layers.attention import Attention, QKNorm
from gen.models.layers.recompute import recomputed
from gen.models.layers.rope import Rope

__all__ = ["Block", "FinalLayer", "Mlp", "SplitSwiGLU", "SwiGLU", "modulate", "run_block"]


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return h times 1 + scale, plus shift.

    Args:
        h: tokens [B, T, width].
        shift, scale: [B, width], or [B, T, width] to differ by token.
    """
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
        return self.w3(self.gate(a) * b)

    def gate(self, a: Tensor) -> Tensor:
        """Return silu(a), elementwise."""
        return silu(a)


class SplitSwiGLU(nn.Module):
    """Each token by itself: w2(silu(w1(h)) * w3(h)), without biases (Shazeer 2020; Llama's weights)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.w2(silu(self.w1(h)) * self.w3(h))


class Block(nn.Module):
    """The residual that a transformer block adds to tokens h [B, T, width]; zero when initialised as DiT is.

    The condition c is [B, width], or [B, T, width] to differ by token. width, heads, hidden: of the tokens, the
    attention and the MLP. qk_norm, bias: see gen.models.layers.attention. mlp: constructor (width, hidden) of the MLP.
    rms: norms by root mean square with learned gains, instead of layer norms without. silu: c passes SiLU first.

    Sites, `site` being the block's own name: "{site}.attn" and "{site}.mlp" are the two residuals, gates and all;
    inside them "{site}.attn.raw" and "{site}.mlp.raw" are the bare modules from modulated input to ungated output.

    Attributes:
        fused: if no tap is given, `run_block` takes norms, gates and sums in the fewest passes over memory, which
            rounds otherwise.
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    fused = False
    gradient_checkpointing = False

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        qk_norm: QKNorm = False,
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
        """Return what attention adds to h, and then what the MLP adds to the sum; each [B, T, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulate(c)

        def attn(h: Tensor) -> Tensor:
            h = modulate(self.norm1(h), shift1, scale1)
            return gate1 * call_site(tap, f"{site}.attn.raw", lambda h: self.attn(h, rope), h)

        def mlp(h: Tensor) -> Tensor:
            h = modulate(self.norm2(h), shift2, scale2)
            return gate2 * call_site(tap, f"{site}.mlp.raw", self.mlp, h)

        first = call_site(tap, f"{site}.attn", attn, h)  # [B, T, width]
        return first, call_site(tap, f"{site}.mlp", mlp, h + first)

    def fused_forward(self, h: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        """Return h with both residuals added, in fused operations."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulate(c)
        norm1: Any = self.norm1
        norm2: Any = self.norm2
        kind: Literal["rms", "layer"] = "rms" if isinstance(norm1, nn.RMSNorm) else "layer"
        mixed = self.attn(modulated_norm(h, scale1, shift1, norm1.weight, kind, norm1.eps), rope)
        h, normed = gated_residual_norm(h, mixed, gate1, scale2, shift2, norm2.weight, kind, norm2.eps)
        return gated_residual(h, self.mlp(normed), gate2)

    def _modulate(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of attention and of the MLP, each [B, 1 or T, width]."""
        modulation: Tensor = self.adaLN_modulation(c)  # [B, 6 width] or [B, T, 6 width]
        return (modulation[:, None] if modulation.ndim == 2 else modulation).chunk(6, -1)


def run_block(block: Any, h: Tensor, c: Any, i: int, tap: Tap | None, rope: Rope | None = None) -> Tensor:
    """Run block i on tokens h: the site "hidden.{i}", and inside it "blocks.{i}", the residual.

    Args:
        block: a Block, or a module with its method `residuals`.
        h: tokens [B, T, width].
        c: the block's condition, [B, width] or [B, T, width].
        i: number of the block in its network.
        tap: the tap, or None.
        rope: rotary table of the attention, or None.
    """
    site = f"blocks.{i}"
    if tap is None and getattr(block, "fused", False):
        return recomputed(block, lambda h: block.fused_forward(h, c, rope))(h)

    def after(h: Tensor) -> Tensor:
        parts: list[Tensor] = []

        def residual(h: Tensor) -> Tensor:
            first, second = block.residuals(h, c, site, tap, rope)
            parts[:] = first, second, first + second
            return parts[2]

        out = call_site(tap, site, residual, h)
        # (h + first) + second is what is published, to the bit; a tap may have returned something else than their sum.
        return h + parts[0] + parts[1] if parts and out is parts[2] else h + out

    return call_site(tap, f"hidden.{i}", recomputed(block, after), h)


class FinalLayer(nn.Module):
    """Tokens [B, T, width] under a condition c to numbers [B, T, out]; rms and silu as in Block."""

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
