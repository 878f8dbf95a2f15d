"""MMDiT: tokens of image and caption in one attention, each with weights of its own (SD3, Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import attention
from gen.models.layers import family, init
from gen.models.layers.attention import Attention
from gen.models.layers.block import FinalLayer, Mlp, modulate
from gen.models.layers.captioned import CaptionedNet
from gen.models.layers.captions import CaptionEmbedding, check_text_fields
from gen.models.layers.embed import grid_embedding

__all__ = ["MMDiT", "MMDiTNet"]

_SD3: Json = {
    "size": 128, "patch": 2, "channels": 16, "classes": 0, "width": 1536, "depth": 24, "heads": 24, "text_width": 4096,
    "text_length": 333, "pooled_width": 2048, "null_text": "stored", "position_max": 192, "time_scale": 1000.0,
}  # fmt: skip
PRESETS: family.Presets = {
    "SD3-medium": _SD3,
    "SD3.5-medium": {**_SD3, "qk_norm": True, "dual_blocks": 13, "position_max": 384},
    "SD3.5-large": {**_SD3, "qk_norm": True, "width": 2432, "depth": 38, "heads": 38},
    "digits": {
        "size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 48, "depth": 4, "heads": 4, "text_width": 16,
        "text_length": 16, "time_scale": 1000.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class MMDiT(family.Family):
    """A diffusion transformer whose image and caption attend to each other; the defaults are small.

    The caption is cond["text"] or cond["text_ids"] with cond["text_mask"] (gen.models.layers.captions), and
    cond["pooled"] [B, pooled_width], one vector for all of it, which is added to the embedding of time. Without them
    there is no caption. Presets: Stable Diffusion 3's and 3.5's, and "digits".

    Attributes:
        size: height and width of x, pixels: one number for squares, else both.
        patch: side of a token's square, pixels.
        channels: of x; 16 for Stable Diffusion 3's autoencoder.
        classes: number of labels, 0 for none, as published; the embedding of a label is added to that of time.
        width: channels of a token; 1536 (medium), 2432 (large).
        depth: number of blocks; 24, 38. After the last attention the caption is not needed.
        heads: of attention; 24, 38.
        mlp_ratio: hidden width of both MLPs over width.
        dual_blocks: how many of the first blocks have a second attention, of the image alone; 13 in SD3.5-medium.
        cond_channels: of a picture cond["image"] that is joined to x, such as a degraded one; 0 for none.
        text_width: channels of a caption's embedding; 4096 in SD3, CLIP's padded to those of T5.
        text_length: most tokens of a caption; 77 + 256 in SD3.
        text_vocab: ids of the text transformer that is trained with the model; 0 for given embeddings.
        text_depth: blocks of that transformer, text_width wide.
        pooled_width: channels of cond["pooled"]; 2048 in SD3, 0 for none. With text_vocab, text_width: the mean over
            tokens.
        null_text: the tokens of no caption: one "learned" token, or the "stored" embedding of the empty caption.
        position_max: side of the square of tokens out of whose middle positions are taken, spread over the range of
            this size, as published; 0 for DiT's positions.
        time_scale: factor on t; 1000 suits t in [0, 1].
        time_convention: what t = 1 means to the network.
        qk_norm: RMS-normalise queries and keys, as in SD3.5.
        null_class: whether there is a label for "no class".
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = PRESETS

    size: int | tuple[int, int] = 32
    patch: int = 2
    channels: int = 4
    classes: int = 0
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    dual_blocks: int = 0
    cond_channels: int = 0
    text_width: int = 768
    text_length: int = 120
    text_vocab: int = 0
    text_depth: int = 0
    pooled_width: int = 0
    null_text: Literal["learned", "stored"] = "learned"
    position_max: int = 0
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    qk_norm: bool = False
    null_class: bool = True

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0, cond_channels=0,
                        dual_blocks=0, pooled_width=0, position_max=0)  # fmt: skip
        check_fields(self, mlp_ratio="(0, 1000]")
        check_text_fields(self)
        family.one_number_for_squares(self)
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 4)
        if self.text_vocab and self.pooled_width not in (0, self.text_width):
            raise UserError(f"MMDiT: pooled_width {self.pooled_width}; with text_vocab it is 0 or text_width, "
                            f"{self.text_width}")  # fmt: skip
        if self.dual_blocks > self.depth or 0 < self.position_max < max(sides(self)) // self.patch:
            raise UserError(f"MMDiT: dual_blocks {self.dual_blocks}, position_max {self.position_max}; at most depth "
                            f"{self.depth}, and 0 or at least the tokens of a side")  # fmt: skip

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return self.patch

    def build(self) -> MMDiTNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return MMDiTNet(self)


class Conditions(NamedTuple):
    """All that the blocks take of time and condition.

    Attributes:
        time: embedding of time, class and pooled caption, [B, width].
        tokens: number of the image's tokens, the first ones.
        mask: which of all tokens are attended to, bool [B, T + L].
    """

    time: Tensor
    tokens: int
    mask: Tensor


class MMDiTNet(CaptionedNet):
    """MMDiT's network; see gen.models.layers.patch.PatchNet. Its blocks' tokens are the image's, then the text's."""

    spec: MMDiT
    adaln_only = False

    def __init__(self, spec: MMDiT):
        super().__init__(spec)
        width, hidden = spec.width, int(spec.mlp_ratio * spec.width)
        self.captions = CaptionEmbedding(spec)
        self.text_embedder = nn.Linear(spec.text_width, width)
        self.pooled_embedder: nn.Sequential | None = None
        if spec.pooled_width:
            first = nn.Linear(spec.pooled_width, width)
            self.pooled_embedder = nn.Sequential(first, nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            JointBlock(width, spec.heads, hidden, spec.qk_norm, i < spec.dual_blocks, i == spec.depth - 1)
            for i in range(spec.depth)
        )
        self.final_layer = FinalLayer(width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that are read, and are zeros where there is none."""
        return (*super().conditions, "pooled") if self.spec.pooled_width else super().conditions

    def check(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> None:
        super().check(x, t, cond, s)
        wanted = [len(x), self.spec.pooled_width]
        if self.spec.pooled_width and "pooled" in cond and list(cond["pooled"].shape) != wanted:
            raise UserError(f"cond['pooled'] is {list(cond['pooled'].shape)}; it must be {wanted}")

    def position_table(self, grid: Sequence[int]) -> Tensor:
        """Return positions [1, T, width] of a grid of tokens."""
        own, most = self.own_grid, self.spec.position_max
        if not most:
            rows, columns = (a / b for a, b in zip(own, grid, strict=True))
            return grid_embedding(self.spec.width, *grid, steps=(rows, columns))[None]
        if max(grid) > most:
            raise UserError(f"this MMDiT has positions for {most} tokens a side; x has {max(grid)}")
        whole = grid_embedding(self.spec.width, most, steps=(own[0] / most, own[1] / most)).unflatten(0, (most, most))
        top, left = ((most - n) // 2 for n in grid)
        return whole[top : top + grid[0], left : left + grid[1]].flatten(0, 1)[None]

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        self.check(x, t, cond, s)
        h = self.embed(family.join_image(self.spec, x, cond))  # [B, T, width]
        text, mask = self.captions(cond, len(x))  # [B, L, text_width]
        c = Conditions(
            self._pooled(self.conditioning(t, cond, tap), cond, text, mask),
            h.shape[1],
            torch.cat([mask.new_ones(h.shape[:2]), mask], 1),
        )
        h = torch.cat([h, self.text_embedder(text)], 1)  # [B, T + L, width]
        h = call_site(tap, "trunk", lambda h: self.run_blocks(h, c, tap), h)
        return call_site(tap, "final", lambda h: self.head(h[:, : c.tokens], c.time, x.shape[2:]), h)

    def _pooled(self, time: Tensor, cond: Cond, text: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding of time with that of the pooled caption added."""
        if self.pooled_embedder is None:
            return time
        if self.spec.text_vocab:
            some = mask[..., None].to(text.dtype)
            pooled = (text * some).sum(1) / some.sum(1).clamp(min=1)
        else:
            pooled = self.captions.pooled(cond, len(text)).to(time.dtype)
        return time + self.pooled_embedder(pooled)


class Stream(nn.Module):
    """The weights of one kind of token in a JointBlock; of the text's last one only what the attention needs.

    parts: chunks of its modulation: shift, scale and gate of attention and MLP; of the last text shift and scale; of an
    image with two attentions those of the second besides.
    """

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, parts: int):
        super().__init__()
        self.heads, self.parts = heads, parts
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.proj = nn.Linear(width, width) if parts > 2 else None
        self.mlp = Mlp(width, hidden) if parts > 2 else None
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))

    def modulation(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return the chunks, [B, 1, width] each."""
        return self.adaLN_modulation(time)[:, None].chunk(self.parts, -1)

    def heads_of(self, h: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Return q, k and v of tokens h [B, N, width], [B, N, heads, d] each."""
        qkv = self.qkv(modulate(self.norm(h), shift, scale)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)
        return self.q_norm(q), self.k_norm(k), v

    def after_attention(self, h: Tensor, gate: Sequence[Tensor]) -> Tensor:
        """Return what the attended heads h [B, N, heads, d] add; zeros for the last text."""
        h = h.flatten(2)
        return torch.zeros_like(h) if self.proj is None else gate[0] * self.proj(h)

    def after_mlp(self, h: Tensor, shift_scale_gate: Sequence[Tensor]) -> Tensor:
        """Return what the MLP adds to tokens h [B, N, width]; zeros for the last text."""
        if self.mlp is None:
            return torch.zeros_like(h)
        shift, scale, gate = shift_scale_gate
        return gate * self.mlp(modulate(self.norm(h), shift, scale))


class JointBlock(nn.Module):
    """MMDiT's block: one attention of all tokens, with two sets of weights.

    Attributes:
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, dual: bool, last: bool):
        super().__init__()
        self.image = Stream(width, heads, hidden, qk_norm, 9 if dual else 6)
        self.text = Stream(width, heads, hidden, qk_norm, 2 if last else 6)
        self.second = Attention(width, heads, qk_norm) if dual else None

    def residuals(
        self, h: Tensor, c: Conditions, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what attention adds to all tokens h [B, T + L, width], and then what the MLPs add."""
        image, text = self.image.modulation(c.time), self.text.modulation(c.time)

        def attn(h: Tensor) -> Tensor:
            x, y = h[:, : c.tokens], h[:, c.tokens :]
            parts = zip(self.image.heads_of(x, *image[:2]), self.text.heads_of(y, *text[:2]), strict=True)
            q, k, v = (torch.cat(pair, 1) for pair in parts)
            out = attention(q, k, v, attn_mask=c.mask[:, None])
            first = self.image.after_attention(out[:, : c.tokens], image[2:3])
            if self.second is not None:
                shift, scale, gate = image[6:]
                first = first + gate * self.second(modulate(self.image.norm(x), shift, scale))
            return torch.cat([first, self.text.after_attention(out[:, c.tokens :], text[2:3])], 1)

        def mlp(h: Tensor) -> Tensor:
            x, y = h[:, : c.tokens], h[:, c.tokens :]
            return torch.cat([self.image.after_mlp(x, image[3:6]), self.text.after_mlp(y, text[3:6])], 1)

        first = call_site(tap, f"{site}.attn", attn, h)
        return first, call_site(tap, f"{site}.mlp", mlp, h + first)
