"""The two parts of a convolutional U-Net: residual blocks that a condition scales and shifts, and attention of pixels.

(Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", whose public code names the parts so.)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention

from gen.diffusion.tap import Tap, call_site

__all__ = ["PixelAttention", "ResBlock", "Resample", "resample", "run_res_block", "zero"]

Resample = Literal["keep", "down", "up"]


def resample(h: Tensor, how: Resample) -> Tensor:
    """h [B, C, H, W] at the same, half (mean of four) or twice (each value repeated) the height and width."""
    if how == "keep":
        return h
    return avg_pool2d(h, 2) if how == "down" else interpolate(h, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """What a block adds to its shortcut: h [B, width, H, W], c [B, emb] -> [B, out, H', W']; zero when freshly made.

    same: whether the shortcut is h itself.
    """

    def __init__(self, width: int, out: int, emb: int, groups: int, dropout: float = 0.0, how: Resample = "keep"):
        super().__init__()
        self.how, self.same = how, how == "keep" and width == out
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out), nn.SiLU(), nn.Dropout(dropout), zero(last))
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def shortcut(self, h: Tensor) -> Tensor:
        """What the block adds to: h [B, width, H, W] with the block's own output shape."""
        return self.skip_connection(resample(h, self.how))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(resample(act(norm(h)), self.how))  # [B, out, H', W']
        scale, shift = self.emb_layers(c)[..., None, None].chunk(2, 1)  # each [B, out, 1, 1]
        norm, act, drop, conv = self.out_layers
        return conv(drop(act(norm(h) * (1 + scale) + shift)))


class PixelAttention(nn.Module):
    """What attention of every pixel with every one adds to h [B, width, H, W]; zero when freshly made.

    order: how the 3 width rows of qkv lie: "qkv", all of q, then of k, then of v; "heads", q, k and v head by head.
    """

    def __init__(self, width: int, heads: int, groups: int, order: Literal["qkv", "heads"] = "qkv"):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = zero(nn.Conv1d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h).flatten(2))  # [B, 3 width, T]
        if self.order == "qkv":
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)  # each [B, heads, width / heads, T]
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        mixed = scaled_dot_product_attention(q.mT, k.mT, v.mT)  # [B, heads, T, width / heads]
        return self.proj_out(mixed.mT.flatten(1, 2)).unflatten(2, h.shape[2:])


def run_res_block(block: ResBlock, attn: nn.Module | None, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
    """h [B, width, H, W] after a residual block and, if there is one, the attention behind it.

    Sites: `site` is all that the two add to the block's shortcut, "{site}.conv" and "{site}.attn" what each adds. A
    block that changes the shape computes what it adds from h and not from the shortcut that a tap is shown.
    """

    def conv(inner: Tensor) -> Tensor:
        return block(inner if block.same else h, c)

    def both(inner: Tensor) -> Tensor:
        first = call_site(tap, f"{site}.conv", conv, inner)
        return first if attn is None else first + call_site(tap, f"{site}.attn", attn, inner + first)

    short = block.shortcut(h)
    return short + call_site(tap, site, both, short)


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its weights set to zero."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
