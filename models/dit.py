"""DiT: a plain transformer over patches, conditioned through its norms (Peebles & Xie 2022; SiT, Ma et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.errors import UserError, nearest
from gen.models.layers.block import Block, FinalLayer, visit
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, grid_embedding
from gen.tap import Tap

__all__ = ["DiT", "DiTNet"]

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)


@dataclass(frozen=True)
class DiT:
    """A diffusion transformer; the defaults are the published DiT-S/2 for 256 x 256 ImageNet in 32 x 32 x 4 latents.

    size: height and width of x. patch: side of a token's square. classes: 0 for no labels; otherwise the label table
    has one more row, for "no class". learn_sigma: the final layer has twice the channels, as the published weights do;
    forward returns the first half. time_scale: t is multiplied by it first (1000 suits t in [0, 1]: the waves were made
    for 0..999). freq_shift, mlp_norm_eps: 0 and 1e-6 as published; diffusers' port has 1 and 1e-5. qk_norm: see
    gen.models.layers.attention.
    """

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    time_scale: float = 1.0
    freq_shift: int = 0
    mlp_norm_eps: float = 1e-6
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "patch", "channels", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"DiT.{name} is {getattr(self, name)}; it must be at least 1")
        if self.classes < 0:
            raise UserError(f"DiT.classes is {self.classes}; give 0 for data without labels")
        if self.size % self.patch:
            raise UserError(f"DiT.size {self.size} is not divisible by DiT.patch {self.patch}")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"DiT.width {self.width} must be divisible by 4 and by DiT.heads {self.heads}")

    @staticmethod
    def preset(name: str, **changes: Any) -> DiT:
        """A published size, "DiT-S/2" to "DiT-XL/8" (also without "DiT-"), with fields changed."""
        allowed = {f"DiT-{size}/{p}": (size, p) for size in SIZES for p in PATCHES}
        full = name if name.startswith("DiT-") else f"DiT-{name}"
        if full not in allowed:
            raise UserError(f"unknown preset {name!r}. {nearest(full, allowed)}")
        size, patch = allowed[full]
        depth, width, heads = SIZES[size]
        return replace(DiT(patch=patch, depth=depth, width=width, heads=heads), **changes)

    def build(self) -> DiTNet:
        """The network, freshly initialised: its output is zero and every block the identity."""
        return DiTNet(self)


class DiTNet(nn.Module):
    """net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W]. Names in the state dict are the published ones.

    Sites of a tap. What is added to the tokens: "blocks.3" (a whole block) and, inside it, "blocks.3.attn" and
    "blocks.3.mlp" (see Block); leaving one out (Skip) is the identity. Whole values, which a tap may replace but Skip
    must not meet: "trunk" (tokens before the first block -> after the last), inside it "hidden.3" (tokens before
    -> after block 3), and "final" (tokens -> the image with all its channels, learned sigma included).
    """

    def __init__(self, spec: DiT):
        super().__init__()
        self.spec = spec
        out = spec.channels * (2 if spec.learn_sigma else 1)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)})
        self.pos_embed = nn.Parameter(grid_embedding(spec.width, spec.size // spec.patch)[None], requires_grad=False)
        self.t_embedder = TimeEmbedding(spec.width, freq_shift=spec.freq_shift)
        self.y_embedder = ClassEmbedding(spec.classes, spec.width) if spec.classes else None
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, hidden, spec.qk_norm, spec.mlp_norm_eps) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * out)
        self.apply(_initialise)
        self._start()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        self._check(x, t, cond, s)
        # The first operand decides the layout of the sum, and pos_embed is contiguous.
        h = self.pos_embed + self.x_embedder["proj"](x).flatten(2).mT  # [B, T, width]
        c = self.t_embedder(t * self.spec.time_scale)  # [B, width]
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond["y"])  # [B, width]
        h = visit(tap, "trunk", lambda h: self.trunk(h, c, tap), h)  # [B, T, width]
        out = visit(tap, "final", lambda h: self.unpatchify(self.final_layer(h, c)), h)  # [B, C or 2C, H, W]
        return out[:, : self.spec.channels]  # [B, C, H, W]

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """All blocks: tokens h [B, T, width] under the condition c [B, width]."""
        for i, block in enumerate(self.blocks):
            h = _through(block, h, c, i, tap)  # [B, T, width]
        return h

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, patch * patch * channels], channel fastest, back to an image [B, channels, H, W]."""
        side, p = self.spec.size // self.spec.patch, self.spec.patch
        image = tokens.reshape(len(tokens), side, side, p, p, -1)  # [B, row, column, y, x, channel]
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The condition that stands for "no class"."""
        if not self.spec.classes:
            return dict(cond)
        return {**cond, "y": torch.full_like(self._labels(cond), self.spec.classes)}

    def _labels(self, cond: Mapping[str, Tensor]) -> Tensor:
        if "y" not in cond:
            given = ", ".join(cond) or "nothing"
            raise UserError(f"this DiT has {self.spec.classes} classes and needs cond['y']; given: {given}")
        return cond["y"]

    def _check(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], s: Tensor | None) -> None:
        """Shapes and kinds only: looking at values would wait for the device."""
        expected = (self.spec.channels, self.spec.size, self.spec.size)
        if tuple(x.shape[1:]) != expected:
            raise UserError(f"x has shape {list(x.shape)}; this DiT takes [B, {', '.join(map(str, expected))}]")
        if t.shape != x.shape[:1]:
            raise UserError(f"t has shape {list(t.shape)}; for this x it must be [{len(x)}]")
        if s is not None:
            raise UserError("a target time s was given, but this DiT is no flow map and takes only t")
        if not self.spec.classes:
            return
        y = self._labels(cond)
        if y.shape != x.shape[:1] or y.dtype not in (torch.int64, torch.int32):
            raise UserError(f"cond['y'] is {y.dtype} {list(y.shape)}; for this x it must be torch.int64 [{len(x)}]")

    def _start(self) -> None:
        """The start from which training is stable: blocks add nothing, the output is zero (adaLN-Zero)."""
        for name, weight in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight") or name == "final_layer.linear.weight":
                nn.init.zeros_(weight)
            elif name.startswith("t_embedder") and name.endswith("weight"):
                nn.init.normal_(weight, std=0.02)


def _through(block: nn.Module, h: Tensor, c: Tensor, i: int, tap: Tap | None) -> Tensor:
    """Tokens h [B, T, width] after block i."""

    def after(h: Tensor) -> Tensor:
        return h + visit(tap, f"blocks.{i}", lambda h: block(h, c, f"blocks.{i}", tap), h)

    return visit(tap, f"hidden.{i}", after, h)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))  # as the linear map of a patch that it is
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
