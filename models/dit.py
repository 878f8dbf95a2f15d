"""DiT: a plain transformer over patches, conditioned through its norms (Peebles & Xie 2022; SiT, Ma et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.layers import family, init, mup
from gen.models.layers.attention import QKNorm
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.patch import PatchNet

__all__ = ["DiT", "DiTNet"]

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
DIGITS = {"size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4}


def _table() -> family.Presets:
    """Return DiT-S/2 ... DiT-XL/8; the same as SiT, whose t = 1 is the data; and one for digits."""
    sizes = {
        f"{size}/{p}": {"patch": p, "depth": depth, "width": width, "heads": heads}
        for size, (depth, width, heads) in SIZES.items()
        for p in PATCHES
    }
    dit = {f"DiT-{size}": fields for size, fields in sizes.items()}
    sit = {f"SiT-{size}": {**fields, "time_convention": "data", "time_scale": 1.0} for size, fields in sizes.items()}
    return {**dit, **sit, "digits": {**DIGITS, "time_scale": 1000.0, "freq_shift": 1}}


@dataclass(frozen=True)
class DiT(family.Family):
    """A diffusion transformer; the defaults are the published DiT-S/2 for 256 x 256 ImageNet in 32 x 32 x 4 latents.

    Presets: "DiT-S/2" to "DiT-XL/8", "SiT-S/2" to "SiT-XL/8", and "digits".

    Attributes:
        size: height and width of x, pixels: one number for squares, else both.
        patch: side of a token's square, pixels; 2, 4 or 8 as published.
        channels: of x; 4 for latents of Stable Diffusion's autoencoder.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        null_class: whether it has; without it the model cannot be guided, nor trained with labels left out.
        width: channels of a token; 384 (S), 768 (B), 1024 (L), 1152 (XL).
        depth: number of blocks; 12, 12, 24, 28.
        heads: of attention; 6, 12, 16, 16.
        mlp_ratio: hidden width of the MLP over width.
        learn_sigma: the final layer has twice the channels, as the published weights do; forward returns the first
            half.
        cond_channels: of a picture cond["image"] that is joined to x, such as a degraded one; 0 for none.
        time_scale: factor on t; 1000 suits t in [0, 1], since the waves were designed for 0 .. 999.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t, for the weights of SiT.
        freq_shift: of the waves of time (gen.models.layers.embed.waves); 0 as published, 1 in diffusers' port, which
            cannot be exported to exactly from any other.
        mlp_norm_eps: of the norm before the MLP; 1e-6 as published, 1e-5 in diffusers' port.
        qk_norm: RMS-normalise queries and keys, or "layer": by layer norms (gen.models.layers.attention).
        mup_base: width whose learning rate this width can take over (muP: gen.models.layers.mup), with heads that grow
            with the width, see `wider`; None for the standard parameterisation. The models of arXiv 2505.15270 have
            base 288, with heads of 72 channels.
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = _table()

    size: int | tuple[int, int] = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    cond_channels: int = 0
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0
    mlp_norm_eps: float = 1e-6
    qk_norm: QKNorm = False
    null_class: bool = True
    mup_base: int | None = None

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0, cond_channels=0)
        check_fields(self, mup_base="[1, inf)", mlp_ratio="(0, 1000]", mlp_norm_eps="[0, inf)")
        family.one_number_for_squares(self)
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 4)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return self.patch

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the start of a training, when they are not too late."""
        if self.freq_shift == 1:
            return ()
        return (
            f"--model.freq_shift is {self.freq_shift}; diffusers' DiT has 1 built in, and gen export --to diffusers "
            "will write this model with --patched only, one of --model.freq_shift 1 as it is",
        )

    def wider(self, width: int) -> DiT:
        """Return the spec at another width, with heads of the same size, in muP with this width as its base."""
        heads = width * self.heads // self.width
        if heads < 1 or width * self.heads != heads * self.width:
            raise UserError(f"DiT.width {width} has no whole number of heads of size {self.width / self.heads:g}")
        return replace(self, width=width, heads=heads, mup_base=self.mup_base or self.width)

    def build(self) -> DiTNet:
        """Return a fresh network: its output is zero and, but in muP, every block the identity."""
        return DiTNet(self)


class DiTNet(PatchNet):
    """DiT's network; see gen.models.layers.patch.PatchNet. Names in the state dict are the published ones."""

    spec: DiT

    def __init__(self, spec: DiT):
        super().__init__(spec)
        hidden, out = int(spec.mlp_ratio * spec.width), spec.channels * (2 if spec.learn_sigma else 1)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, hidden, spec.qk_norm, spec.mlp_norm_eps) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * out)
        if spec.mup_base is None:
            self.apply(init.xavier)
            init.adaln_zero(self)
        else:
            self.final_layer.linear = mup.Readout(spec.width, spec.patch**2 * out, spec.width / spec.mup_base)
            mup.initialise(self)

    def lr_scales(self) -> dict[str, float]:
        """Return the factors on the run's learning rate that are not 1: in muP those of the matrices, 1 / ratio."""
        if self.spec.mup_base is None:
            return {}
        with torch.device("meta"):
            wider = DiTNet(replace(self.spec, width=2 * self.spec.width, heads=2 * self.spec.heads, mup_base=None))
        return dict.fromkeys(mup.matrix_like(self, wider), self.spec.mup_base / self.spec.width)
