"""Parts of a convolutional U-Net: residual blocks that a condition scales and shifts, attention of pixels, levels.

(Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", whose public code names the parts so.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, scaled_dot_product_attention

from gen.diffusion.tap import Compute, Tap, call_site
from gen.models.layers import init
from gen.models.layers.recompute import recomputed

__all__ = [
    "Downsample",
    "LevelBlock",
    "PixelAttention",
    "ResBlock",
    "Resample",
    "Upsample",
    "resample",
    "run_alone",
    "run_levels",
    "run_res_block",
    "zero_module",
]

LevelBlock = Callable[[Tensor, Tensor, str, Tap | None], Tensor]  # h, c, site, tap -> h
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
        scale_shift: the condition scales and shifts the second norm; False adds it before that norm.
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        width: int,
        out: int,
        emb: int,
        groups: int,
        dropout: float = 0.0,
        resampling: Resample = "keep",
        scale_shift: bool = True,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.resampling, self.same, self.scale_shift = resampling, resampling == "keep" and width == out, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, width, eps), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out, eps), nn.SiLU(), nn.Dropout(dropout), zero_module(last)
        )
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def shortcut(self, h: Tensor) -> Tensor:
        """Return h [B, width, H, W] in the shape of the block's output."""
        return self.skip_connection(resample(h, self.resampling))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(resample(act(norm(h)), self.resampling))  # [B, out, H', W']
        c = self.emb_layers(c)[..., None, None]  # [B, 2 out or out, 1, 1]
        norm, act, drop, conv = self.out_layers
        if not self.scale_shift:
            return conv(drop(act(norm(h + c))))
        scale, shift = c.chunk(2, 1)  # each [B, out, 1, 1]
        return conv(drop(act(norm(h) * (1 + scale) + shift)))


class Downsample(nn.Module):
    """A strided convolution: features [B, width, H, W] -> [B, width, H/2, W/2].

    same: padded at the right and at the bottom alone, as TensorFlow's "SAME" is.
    """

    def __init__(self, width: int, same: bool = False):
        super().__init__()
        self.same = same
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=0 if same else 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(pad(h, (0, 1, 0, 1)) if self.same else h)


class Upsample(nn.Module):
    """A convolution of features whose pixels are repeated: [B, width, H, W] -> [B, width, 2 H, 2 W]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(resample(h, "up"))


class PixelAttention(nn.Module):
    """The residual at h [B, width, H, W] of attention of every pixel with every one; zero when fresh.

    order: layout of the 3 width rows of qkv; "qkv", all of q, then of k, then of v; "heads", q, k and v head by head.
    """

    def __init__(self, width: int, heads: int, groups: int, order: Literal["qkv", "heads"] = "qkv", eps: float = 1e-5):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = nn.GroupNorm(groups, width, eps)
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


def run_res_block(block: Any, attn: nn.Module | None, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
    """Run a residual block and, if there is one, the attention behind it.

    A block that changes the shape computes its residual from h and not from the shortcut that a tap is shown.

    Args:
        block: the residual block, a ResBlock or a module with its `same` and `shortcut`.
        attn: the attention, or None.
        h: features [B, width, H, W].
        c: condition [B, emb].
        site: name of the site of all that the two add to the block's shortcut; "{site}.conv" and "{site}.attn" are the
            two residuals.
        tap: the tap, or None.
    """

    def run(h: Tensor) -> Tensor:
        def conv(inner: Tensor) -> Tensor:
            return block(inner if block.same else h, c)

        def both(inner: Tensor) -> Tensor:
            first = call_site(tap, f"{site}.conv", conv, inner)
            return first if attn is None else first + call_site(tap, f"{site}.attn", attn, inner + first)

        short = block.shortcut(h)
        return short + call_site(tap, site, both, short)

    return recomputed(block, run)(h)


def run_alone(block: nn.Module, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
    """Run a block that takes no condition and has no site.

    Args:
        block: the block.
        h: features [B, width, ...].
        c, site, tap: as of `LevelBlock`; unused.
    """
    return block(h)


def run_levels(
    h: Tensor,
    c: Tensor,
    tap: Tap | None,
    down: Sequence[Sequence[LevelBlock]],
    middle: Sequence[LevelBlock],
    up: Sequence[tuple[Sequence[LevelBlock], bool]],
    join: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run the stages of a U-Net after its first convolution: down, through the middle, and up again.

    Sites of a tap, whole values: "encoder.2" (features before -> after stage 2 of the way down, kept for the way up;
    the first convolution is stage 0), "middle" (the coarsest features as tokens [B, T, width], before -> after the
    middle), "decoder.2" (features before -> after stage 2 of the way up). A block is called with the site "blocks.3",
    counted from the input to the output.

    Args:
        h: features [B, width, H, W].
        c: condition [B, emb].
        tap: the tap, or None.
        down: blocks of each stage on the way down.
        middle: blocks at the coarsest level.
        up: blocks of each stage on the way up, and whether it takes the last kept features.
        join: from features and kept features to the input of such a stage.
    """
    kept, number = [h], 0
    for i, blocks in enumerate(down, 1):
        h = call_site(tap, f"encoder.{i}", partial(_run_stage, blocks, number, c, tap), h)
        kept.append(h)
        number += len(blocks)
    shape, run_middle = h.shape, partial(_run_stage, middle, number, c, tap)
    tokens = call_site(tap, "middle", lambda t: run_middle(t.mT.reshape(shape)).flatten(2).mT, h.flatten(2).mT)
    h, number = tokens.mT.reshape(shape), number + len(middle)
    for i, (blocks, joins) in enumerate(up):
        run = partial(_run_stage, blocks, number, c, tap)
        h = call_site(tap, f"decoder.{i}", partial(_joined, run, join, kept.pop()) if joins else run, h)
        number += len(blocks)
    return h


def _run_stage(blocks: Sequence[LevelBlock], number: int, c: Tensor, tap: Tap | None, h: Tensor) -> Tensor:
    """Run blocks, the first of which has this number, on h."""
    for i, block in enumerate(blocks, number):
        h = block(h, c, f"blocks.{i}", tap)
    return h


def _joined(run: Compute, join: Callable[[Tensor, Tensor], Tensor], kept: Tensor, h: Tensor) -> Tensor:
    return run(join(h, kept))


def zero_module(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero and return it.

    Args:
        layer: any.
    """
    init.zeros(layer)
    return layer
