"""DiT: a plain transformer over patches, conditioned through its norms (Peebles & Xie 2022; SiT, Ma et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init, mup
from gen.models.layers.block import Block, FinalLayer, run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, grid_embedding
from gen.models.layers.patch import unpatchify

__all__ = ["DiT", "DiTNet"]

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
DIGITS = {"size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4}


def _table() -> dict[str, dict[str, Any]]:
    """DiT-S/2 ... DiT-XL/8, the same as SiT, whose t = 1 is the data, and one for digits."""
    sizes = {
        f"{size}/{p}": {"patch": p, "depth": depth, "width": width, "heads": heads}
        for size, (depth, width, heads) in SIZES.items()
        for p in PATCHES
    }
    dit = {f"DiT-{size}": fields for size, fields in sizes.items()}
    sit = {f"SiT-{size}": {**fields, "time_convention": "data"} for size, fields in sizes.items()}
    return {**dit, **sit, "digits": {**DIGITS, "time_scale": 1000.0}}


@dataclass(frozen=True)
class DiT:
    """A diffusion transformer; the defaults are the published DiT-S/2 for 256 x 256 ImageNet in 32 x 32 x 4 latents.

    size: height and width of x. patch: side of a token's square. classes: 0 for no labels; otherwise the label table
    has one more row, for "no class". learn_sigma: the final layer has twice the channels, as the published weights do;
    forward returns the first half. time_scale: t is multiplied by it first (1000 suits t in [0, 1]: the waves were made
    for 0..999). time_convention: what t = 1 means to the network; SiT's weights are told 1 - t. freq_shift,
    mlp_norm_eps: 0 and 1e-6 as published; diffusers' port has 1 and 1e-5. qk_norm: see gen.models.layers.attention.
    mup_base: the width whose learning rate is to serve this one (muP: gen.models.layers.mup), None for the standard
    parameterisation; heads are to grow with the width, see `wider`. Of the published models those of arXiv 2505.15270
    have 288, with 72 per head.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = _table()

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
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0
    mlp_norm_eps: float = 1e-6
    qk_norm: bool = False
    mup_base: int | None = None

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0)
        if self.mup_base is not None:
            family.at_least(self, mup_base=1)
        if self.size % self.patch:
            raise UserError(f"DiT.size {self.size} is not divisible by DiT.patch {self.patch}")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"DiT.width {self.width} must be divisible by 4 and by DiT.heads {self.heads}")

    @staticmethod
    def preset(name: str, **changes: Any) -> DiT:
        """A published size, "DiT-S/2" (or "S/2") to "DiT-XL/8", "SiT-...", or "digits", with fields changed."""
        return family.preset(DiT, DiT.presets, name, changes)

    def wider(self, width: int) -> DiT:
        """The same in another width, with heads of the same size, in muP with this width as its base."""
        heads = width * self.heads // self.width
        if heads < 1 or width * self.heads != heads * self.width:
            raise UserError(f"DiT.width {width} has no whole number of heads of size {self.width / self.heads:g}")
        return replace(self, width=width, heads=heads, mup_base=self.mup_base or self.width)

    def build(self) -> DiTNet:
        """The network, freshly initialised: its output is zero and, but in muP, every block the identity."""
        return DiTNet(self)


class DiTNet(nn.Module):
    """net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W]. Names in the state dict are the published ones.

    Sites of a tap. What is added to the tokens: "blocks.3" (a whole block) and, inside it, "blocks.3.attn" and
    "blocks.3.mlp" (see Block); leaving one out (Skip) is the identity. Whole values, which a tap may replace but Skip
    must not meet: "time" (t [B] -> its embedding [B, width]), "trunk" (tokens before the first block -> after the
    last), inside it "hidden.3" (tokens before -> after block 3), and "final" (tokens -> the image with all its
    channels, learned sigma included).
    """

    def __init__(self, spec: DiT):
        super().__init__()
        self.spec = spec
        out = spec.channels * (2 if spec.learn_sigma else 1)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)})
        self.pos_embed = nn.Parameter(grid_embedding(spec.width, spec.size // spec.patch)[None], requires_grad=False)
        self.t_embedder = TimeEmbedding(
            spec.width, freq_shift=spec.freq_shift, scale=spec.time_scale, convention=spec.time_convention
        )
        self.y_embedder = ClassEmbedding(spec.classes, spec.width) if spec.classes else None
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, hidden, spec.qk_norm, spec.mlp_norm_eps) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * out)
        if spec.mup_base is None:
            self.apply(init.scratch)
            init.zero(self)
        else:
            self.final_layer.linear = mup.Readout(spec.width, spec.patch**2 * out, spec.width / spec.mup_base)
            mup.start(self)

    def lr_scales(self) -> dict[str, float]:
        """The learning rates that are not the run's, as its multiples: in muP those of the matrices, 1 / ratio."""
        if self.spec.mup_base is None:
            return {}
        with torch.device("meta"):
            wider = DiTNet(replace(self.spec, width=2 * self.spec.width, heads=2 * self.spec.heads, mup_base=None))
        return dict.fromkeys(mup.matrix_like(self, wider), self.spec.mup_base / self.spec.width)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        # The first operand decides the layout of the sum, and pos_embed is contiguous.
        h = self.pos_embed + self.x_embedder["proj"](x).flatten(2).mT  # [B, T, width]
        c = self.conditioning(t, cond, tap)  # [B, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)  # [B, T, width]
        out = call_site(tap, "final", lambda h: self.unpatchify(self.final_layer(h, c)), h)  # [B, C or 2C, H, W]
        return out[:, : self.spec.channels]  # [B, C, H, W]

    def conditioning(self, t: Tensor, cond: Mapping[str, Tensor], tap: Tap | None = None) -> Tensor:
        """What the norms of all blocks are modulated by: [B, width]."""
        return family.conditioning(self, t, cond, tap)

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """All blocks: tokens h [B, T, width] under the condition c [B, width]."""
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap)  # [B, T, width]
        return h

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, patch * patch * channels], channel fastest, back to an image [B, channels, H, W]."""
        return unpatchify(tokens, self.spec.patch)

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The condition that stands for "no class"."""
        return family.null(self.spec, cond)
