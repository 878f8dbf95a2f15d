"""The two parts of a convolutional U-Net: residual blocks that a condition scales and shifts, and attention of pixels.

(Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", whose public code names the parts so.)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention

from gen.diffusion.tap import Tap, call_site
from gen.models.layers import init

__all__ = ["PixelAttention", "ResBlock", "Resample", "resample", "run_res_block", "zero_module"]

Resample = Literal["keep", "down", "up"]


def resample(h: Tensor, resampling: Resample) -> Tensor:
    """Return features at the same, half or twice the height and width.

    Args:
        h: features [B, C, H, W].
        resampling: "keep", "down" (mean of four) or "up" (each value repeated).
    """
    if resampling == "keep":
        return h
    return avg_pool2d(h, 2) if resampling == "down" else interpolate(h, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """The residual of a block: h [B, width, H, W], c [B, emb] -> [B, out, H', W']; zero when fresh.

    Attributes:
        same: whether the shortcut is h itself.
    """

    def __init__(
        self, width: int, out: int, emb: int, groups: int, dropout: float = 0.0, resampling: Resample = "keep"
    ):
        super().__init__()
        self.resampling, self.same = resampling, resampling == "keep" and width == out
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out), nn.SiLU(), nn.Dropout(dropout), zero_module(last))
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def shortcut(self, h: Tensor) -> Tensor:
        """Return h [B, width, H, W] in the shape of the block's output."""
        return self.skip_connection(resample(h, self.resampling))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(resample(act(norm(h)), self.resampling))  # [B, out, H', W']
        scale, shift = self.emb_layers(c)[..., None, None].chunk(2, 1)  # each [B, out, 1, 1]
        norm, act, drop, conv = self.out_layers
        return conv(drop(act(norm(h) * (1 + scale) + shift)))


class PixelAttention(nn.Module):
    """The residual at h [B, width, H, W] of attention of every pixel with every one; zero when fresh.

    order: layout of the 3 width rows of qkv; "qkv", all of q, then of k, then of v; "heads", q, k and v head by head.
    """

    def __init__(self, width: int, heads: int, groups: int, order: Literal["qkv", "heads"] = "qkv"):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = zero_module(nn.Conv1d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h).flatten(2))  # [B, 3 width, T]
        if self.order == "qkv":
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)  # each [B, heads, width / heads, T]
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        mixed = scaled_dot_product_attention(q.mT, k.mT, v.mT)  # [B, heads, T, width / heads]
        return self.proj_out(mixed.mT.flatten(1, 2)).unflatten(2, h.shape[2:])


def run_res_block(block: ResBlock, attn: nn.Module | None, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
    """Run a residual block and, if there is one, the attention behind it.

    A block that changes the shape computes its residual from h and not from the shortcut that a tap is shown.

    Args:
        block: the residual block.
        attn: the attention, or None.
        h: features [B, width, H, W].
        c: condition [B, emb].
        site: name of the site of all that the two add to the block's shortcut; "{site}.conv" and "{site}.attn" are the
            two residuals.
        tap: the tap, or None.
    """

    def conv(inner: Tensor) -> Tensor:
        return block(inner if block.same else h, c)

    def both(inner: Tensor) -> Tensor:
        first = call_site(tap, f"{site}.conv", conv, inner)
        return first if attn is None else first + call_site(tap, f"{site}.attn", attn, inner + first)

    short = block.shortcut(h)
    return short + call_site(tap, site, both, short)


def zero_module(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero and return it.

    Args:
        layer: any.
    """
    init.zeros(layer)
    return layer
