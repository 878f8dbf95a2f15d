"""UNet1D: convolutions over a signal from fine to coarse and back (Diffusion Policy, Chi et al. 2023).

What differs from the published code: time, class and vector are added, not joined; fresh blocks add nothing; the way up
reads the levels below the finest, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family
from gen.models.layers.conv import LevelBlock, run_alone, run_levels, run_res_block, zero_module
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, VectorEmbedding

__all__ = ["UNet1D", "UNet1DNet"]


@dataclass(frozen=True)
class UNet1D(family.Family):
    """A U-Net over signals [channels, length]; the defaults are Diffusion Policy's for low-dimensional observations.

    Preset: "signals", of 0.3 million parameters.

    Attributes:
        length: numbers of each channel of x.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        vector_width: of cond["vector"] [B, vector_width], such as observations; 0 for none.
        width: channels of the finest level, before `multipliers`; 256.
        multipliers: channels of each level over width, the finest first; each level is half as long as the one before.
        kernel: length of the convolutions, odd; 5.
        groups: of the group norms; 8.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = {
        "signals": {"width": 32, "multipliers": (1, 2), "groups": 4, "time_scale": 1000.0},
    }

    length: int = 16
    channels: int = 2
    classes: int = 0
    vector_width: int = 0
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4)
    kernel: int = 5
    groups: int = 8
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"

    def __post_init__(self) -> None:
        family.at_least(self, length=1, channels=1, classes=0, vector_width=0, width=2, kernel=1, groups=1)
        halvings = len(self.multipliers) - 1
        if halvings < 0 or self.length % 2**halvings or min(self.multipliers) < 1:
            raise UserError(f"UNet1D: length {self.length} cannot be halved once per step of multipliers "
                            f"{self.multipliers}, which are at least 1")  # fmt: skip
        if self.kernel % 2 == 0:
            raise UserError(f"UNet1D.kernel {self.kernel} must be odd")
        family.divisible(self, "width", self.groups, "groups")
        family.divisible(self, "width", 2)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of one x."""
        return (self.channels, self.length)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(m * self.width for m in self.multipliers)

    def build(self) -> UNet1DNet:
        """Return a fresh network: its output is zero and every residual too."""
        return UNet1DNet(self)


class Residual(nn.Module):
    """The residual of a block: h [B, width, L], c [B, emb] -> [B, out, L]; zero when fresh.

    Convolution, group norm and Mish, twice; between them the condition scales and shifts.

    Attributes:
        same: whether the shortcut is h itself.
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(self, width: int, out: int, emb: int, kernel: int, groups: int):
        super().__init__()
        self.same = width == out
        self.first, self.second = (
            nn.Sequential(nn.Conv1d(n, out, kernel, padding=kernel // 2), nn.GroupNorm(groups, out), nn.Mish())
            for n in (width, out)
        )
        zero_module(self.second[1])
        self.condition = nn.Sequential(nn.Mish(), nn.Linear(emb, 2 * out))
        self.shortcut = nn.Identity() if self.same else nn.Conv1d(width, out, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.condition(c)[..., None].chunk(2, 1)  # each [B, out, 1]
        return self.second(self.first(h) * (1 + scale) + shift)


class UNet1DNet(family.FamilyNet):
    """UNet1D's network.

    Sites of a tap, as of gen.models.unet: residuals "blocks.3" with "blocks.3.conv" inside; whole values "time",
    "encoder.0", "trunk" with the sites of gen.models.layers.conv.run_levels, and "final".
    """

    def __init__(self, spec: UNet1D):
        super().__init__()
        self.spec, emb, widths = spec, spec.width, spec.widths
        self.t_embedder = TimeEmbedding(emb, scale=spec.time_scale, convention=spec.time_convention)
        self.y_embedder = ClassEmbedding(spec.classes, emb) if spec.classes else None
        self.vector_embedder = VectorEmbedding(spec.vector_width, emb) if spec.vector_width else None
        self.first = nn.Conv1d(spec.channels, widths[0], spec.kernel, padding=spec.kernel // 2)
        self.down = nn.ModuleList(
            nn.ModuleList([*([nn.Conv1d(width, width, 3, 2, 1)] if i else []), *self._pair(width, out)])
            for i, (width, out) in enumerate(pairwise([widths[0], *widths]))
        )
        self.middle = nn.ModuleList(self._pair(widths[-1], widths[-1]))
        self.up = nn.ModuleList(
            nn.ModuleList([*self._pair(2 * width, out), nn.ConvTranspose1d(out, out, 4, 2, 1)])
            for width, out in pairwise(widths[::-1])
        )
        last = nn.Conv1d(widths[0], widths[0], spec.kernel, padding=spec.kernel // 2)
        self.out = nn.Sequential(
            last, nn.GroupNorm(spec.groups, widths[0]), nn.Mish(), zero_module(nn.Conv1d(widths[0], spec.channels, 1))
        )

    def _pair(self, width: int, out: int) -> list[nn.Module]:
        spec = self.spec
        return [Residual(n, out, spec.width, spec.kernel, spec.groups) for n in (width, out)]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that are read."""
        return ("vector",) if self.vector_embedder is not None else ()

    def null(self, cond: Cond) -> Cond:
        """Return cond with the label "no class" and the vector that stands for none."""
        null = super().null(cond)
        if self.vector_embedder is None or "vector" not in cond:
            return null
        return {**null, "vector": self.vector_embedder.none.to(cond["vector"]).expand_as(cond["vector"])}

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        c = call_site(tap, "time", self.t_embedder, t)  # [B, width]
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond["y"])
        if self.vector_embedder is not None:
            c = c + self.vector_embedder(family.vectors(self.spec, cond, len(x)))
        h = call_site(tap, "encoder.0", self.first, x)  # [B, width, L]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)
        return call_site(tap, "final", self.out, h)  # [B, C, L]

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run down, through the middle and up again on h [B, width, L] under the condition c [B, width]."""
        down, middle = [_blocks(stage) for stage in self.down], _blocks(self.middle)
        up = [(_blocks(stage), True) for stage in self.up]
        return run_levels(h, c, tap, down, middle, up, lambda h, kept: torch.cat([h, kept], 1))


def _blocks(stage: nn.Module) -> list[LevelBlock]:
    """Return a stage's residual blocks, and the convolutions between levels."""
    return [
        partial(run_res_block, block, None) if isinstance(block, Residual) else partial(run_alone, block)
        for block in stage.children()
    ]
