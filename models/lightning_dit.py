"""LightningDiT: DiT with RMS norms, SwiGLU and rotary places, for latents of many channels (Yao et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer, SwiGLU, run_block
from gen.models.layers.embed import ClassEmbedding, GaussianTimeEmbedding, TimeEmbedding, grid_embedding
from gen.models.layers.patch import unpatchify
from gen.models.layers.rope import Rope, axial_angles

__all__ = ["LightningDiT", "LightningDiTNet"]

SIZES = {  # depth, width, heads
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}
LATENTS = {1: {"size": 16, "patch": 1, "channels": 32}, 2: {"size": 32, "patch": 2, "channels": 4}}  # VA-VAE, SD's VAE
DIGITS = {"size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4}


def _table() -> dict[str, dict[str, Any]]:
    """LightningDiT-B/1 ... LightningDiT-1p6B/2, the plain DiT that RAE compares its wide head with, one for digits."""
    table: dict[str, dict[str, Any]] = {
        f"LightningDiT-{size}/{p}": {**latents, "depth": depth, "width": width, "heads": heads}
        for size, (depth, width, heads) in SIZES.items()
        for p, latents in LATENTS.items()
        if (size, p) != ("L", 1)
    }
    rae = {**table["LightningDiT-XL/1"], "channels": 768, "time": "gaussian", "time_convention": "noise"}
    return {**table, "RAE-DiT-XL/1": rae, "digits": {**DIGITS, "time_scale": 1000.0, "time_convention": "noise"}}


@dataclass(frozen=True)
class LightningDiT:
    """DiT with the layers of recent language models; the defaults are the published XL/1 on VA-VAE's latents.

    Places are told twice: by DiT's fixed table, and by turning queries and keys. The hidden width of the MLP is
    2/3 of mlp_ratio * width. qk_norm: as in gen.models.layers.attention; the remedy where long bf16 runs diverge. time:
    "waves" as in DiT, "gaussian" as in RAE (Zheng et al. 2025). Other fields as in gen.models.dit.DiT; the published
    weights are told t = 1 for data, RAE's t = 1 for noise.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = _table()

    size: int = 16
    patch: int = 1
    channels: int = 32
    classes: int = 1000
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    qk_norm: bool = False
    time: Literal["waves", "gaussian"] = "waves"
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "data"

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0)
        if self.size % self.patch:
            raise UserError(f"LightningDiT.size {self.size} is not divisible by LightningDiT.patch {self.patch}")
        if self.width % (4 * self.heads):
            raise UserError(f"LightningDiT.width {self.width} must be divisible by 4 * heads, {4 * self.heads}")

    @staticmethod
    def preset(name: str, **changes: Any) -> LightningDiT:
        """A published size, "LightningDiT-XL/1" (or "XL/1"), "RAE-DiT-XL/1", or "digits", with fields changed."""
        return family.preset(LightningDiT, LightningDiT.presets, name, changes)

    def build(self) -> LightningDiTNet:
        """The network, freshly initialised: its output is zero and every block the identity."""
        return LightningDiTNet(self)


class LightningDiTNet(nn.Module):
    """net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W]. Names in the state dict are the published ones.

    The sites of a tap are those of gen.models.dit.DiTNet.
    """

    def __init__(self, spec: LightningDiT):
        super().__init__()
        self.spec = spec
        width, side = spec.width, spec.size // spec.patch
        out = spec.channels * (2 if spec.learn_sigma else 1)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, width, spec.patch, spec.patch)})
        self.pos_embed = nn.Parameter(grid_embedding(width, side)[None], requires_grad=False)
        embedding = TimeEmbedding if spec.time == "waves" else GaussianTimeEmbedding
        self.t_embedder = embedding(width, scale=spec.time_scale, convention=spec.time_convention)
        self.y_embedder = ClassEmbedding(spec.classes, width) if spec.classes else None
        self.feat_rope = Rope(axial_angles(width // spec.heads, side))
        hidden = 2 * int(spec.mlp_ratio * width) // 3
        self.blocks = nn.ModuleList(
            Block(width, spec.heads, hidden, spec.qk_norm, mlp=SwiGLU, rms=True) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(width, spec.patch**2 * out, rms=True)
        self.apply(init.scratch)
        init.zero(self)

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
        h = self.pos_embed + self.x_embedder["proj"](x).flatten(2).mT  # [B, T, width]
        c = self.conditioning(t, cond, tap)  # [B, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)  # [B, T, width]
        out = call_site(tap, "final", lambda h: unpatchify(self.final_layer(h, c), self.spec.patch), h)
        return out[:, : self.spec.channels]  # [B, C, H, W]

    def conditioning(self, t: Tensor, cond: Mapping[str, Tensor], tap: Tap | None = None) -> Tensor:
        """What the norms of all blocks are modulated by: [B, width]."""
        return family.conditioning(self, t, cond, tap)

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """All blocks: tokens h [B, T, width] under the condition c [B, width]."""
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap, self.feat_rope)  # [B, T, width]
        return h

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The condition that stands for "no class"."""
        return family.null(self.spec, cond)
