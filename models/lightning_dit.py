"""LightningDiT: DiT with RMS norms, SwiGLU and rotary positions, for latents of many channels (Yao et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from gen.config.fields import check_fields
from gen.models.layers import family, init
from gen.models.layers.attention import QKNorm
from gen.models.layers.block import Block, FinalLayer, Mlp, SwiGLU
from gen.models.layers.embed import GaussianTimeEmbedding, TimeEmbedding
from gen.models.layers.patch import PatchNet
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


def _table() -> family.Presets:
    """Return LightningDiT-B/1 ... LightningDiT-1p6B/2, the plain DiT of RAE's comparison, and one for digits."""
    table = {
        f"LightningDiT-{size}/{p}": {**latents, "depth": depth, "width": width, "heads": heads}
        for size, (depth, width, heads) in SIZES.items()
        for p, latents in LATENTS.items()
        if (size, p) != ("L", 1)
    }
    rae = {**table["LightningDiT-XL/1"], "channels": 768, "time": "gaussian", "time_convention": "noise"}
    return {**table, "RAE-DiT-XL/1": rae, "digits": {**DIGITS, "time_scale": 1000.0, "time_convention": "noise"}}


@dataclass(frozen=True)
class LightningDiT(family.Family):
    """DiT with the layers of recent language models; the defaults are the published XL/1 on VA-VAE's latents.

    Positions enter twice: by DiT's fixed table, and by rotated queries and keys. Presets: "LightningDiT-B/1" to
    "LightningDiT-1p6B/2", "RAE-DiT-XL/1", the plain DiT of RAE (Zheng et al. 2025), and "digits".

    Attributes:
        size: height and width of x, pixels; 16 for VA-VAE, 32 for Stable Diffusion's autoencoder.
        patch: side of a token's square, pixels; 1 and 2.
        channels: of x; 32 and 4, 768 for RAE.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token; 768 (B), 1024 (L), 1152 (XL), 1536 (1p0B), 1792 (1p6B).
        depth: number of blocks; 12, 24, 28, 24, 28.
        heads: of attention; 12, 16, 16, 24, 28.
        mlp_ratio: the hidden width of the MLP is 2/3 of mlp_ratio * width.
        learn_sigma: the final layer has twice the channels; forward returns the first half.
        qk_norm: RMS-normalise queries and keys, or "layer": by layer norms; the remedy where long bfloat16 runs
            diverge.
        rms, swiglu: with RMS norms and SwiGLU, as published; False for DiT's layer norms and its MLP, whose hidden
            width is mlp_ratio * width.
        time: embedding of time, "waves" as in DiT, "gaussian" as in RAE.
        time_scale: factor on t; 1 for t in [0, 1] as published.
        time_convention: what t = 1 means to the network; "data" as published, "noise" for RAE's weights.
    """

    presets: ClassVar[family.Presets] = _table()

    size: int = 16
    patch: int = 1
    channels: int = 32
    classes: int = 1000
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    qk_norm: QKNorm = False
    rms: bool = True
    swiglu: bool = True
    time: Literal["waves", "gaussian"] = "waves"
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "data"

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0)
        check_fields(self, mlp_ratio="(0, 1000]")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4 * self.heads, "4 * heads")

    def build(self) -> LightningDiTNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return LightningDiTNet(self)


class LightningDiTNet(PatchNet):
    """LightningDiT's network; see gen.models.layers.patch.PatchNet. Names in the state dict are the published ones."""

    spec: LightningDiT

    def __init__(self, spec: LightningDiT):
        super().__init__(spec)
        width, out = spec.width, spec.channels * (2 if spec.learn_sigma else 1)
        self.feat_rope = Rope(axial_angles(width // spec.heads, spec.size // spec.patch))
        mlp, hidden = (SwiGLU if spec.swiglu else Mlp), int(spec.mlp_ratio * width)
        hidden = 2 * hidden // 3 if spec.swiglu else hidden
        self.blocks = nn.ModuleList(
            Block(width, spec.heads, hidden, spec.qk_norm, mlp=mlp, rms=spec.rms) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(width, spec.patch**2 * out, rms=spec.rms)
        self.apply(init.xavier)
        init.adaln_zero(self)

    @property
    def rope(self) -> Rope:
        """The rotary table of all blocks."""
        return self.feat_rope

    def time_embedding(self) -> nn.Module:
        """Return the embedding of time, [B] -> [B, width]."""
        embedding = TimeEmbedding if self.spec.time == "waves" else GaussianTimeEmbedding
        return embedding(self.spec.width, scale=self.spec.time_scale, convention=self.spec.time_convention)
