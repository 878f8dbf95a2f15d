"""DFM's network: a DiT whose state is a pyramid of stages, each at its own time (Haji-Ali et al. 2025).

"Decomposable Flow Matching", arXiv 2506.19839; layout and names of snap-research/elit, models/sit_dfm.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.decomposition import Decomposition, Laplacian, pack, unpack
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap
from gen.models.dit import DIGITS, DiT, DiTNet
from gen.models.layers import family, init
from gen.models.layers.block import FinalLayer
from gen.models.layers.patch import unpatchify

__all__ = ["DFM", "DFMNet"]


def _table() -> family.Presets:
    """Return DFM-S/2, DFM-B/2, DFM-L/2, DFM-XL/2, which are SiT's sizes with t = 1 at noise; and one for digits."""
    sizes = {f"DFM-{size}": DiT.presets[f"DiT-{size}"] for size in ("S/2", "B/2", "L/2", "XL/2")}
    published = {name: {**fields, "time_scale": 1.0} for name, fields in sizes.items()}
    return {**published, "digits": {**DIGITS, "time_scale": 1000.0, "freq_shift": 1}}


@dataclass(frozen=True)
class DFM(DiT):
    """A DiT with a patch embedding, an embedding of time and a final layer for each stage, whose tokens are summed.

    Presets: "DFM-S/2", "DFM-B/2", "DFM-L/2", "DFM-XL/2" and "digits". The other fields are DiT's, of the finest stage;
    a stage of half the sides has half the patch, and so as many tokens. learn_sigma, cond_channels and mup_base have no
    meaning here and must keep their defaults.

    Attributes:
        decomposition: of x into stages; default the paper's two.
    """

    presets: ClassVar[family.Presets] = _table()

    decomposition: Decomposition = part("diffusion.decomposition", default=Laplacian())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (("learn_sigma", False), ("cond_channels", 0), ("mup_base", None)):
            if getattr(self, name) != default:
                raise UserError(f"DFM.{name} is {getattr(self, name)}; this family has none: it must be {default}")
        family.divisible(self, "patch", 2 ** (self.decomposition.stages - 1), f"2^(stages - 1) of {self.decomposition}")

    @property
    def size_step(self) -> int | None:
        """None: the state is flat, and has no sides."""
        return None

    @property
    def patches(self) -> list[int]:
        """Side of a token's square in each stage, coarsest first."""
        stages = self.decomposition.stages
        return [self.patch // 2**i for i in reversed(range(stages))]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(C, H, W) of each stage, coarsest first."""
        return self.decomposition.shapes((self.channels, *sides(self)))

    def build(self) -> DFMNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return DFMNet(self)


class DFMNet(DiTNet):
    """net(x [B, D], t [B, S, 2], {"y": int64 [B]}) -> [B, D]: dx by the clock's dt, of stages one after the other.

    t has time and speed of each stage, see gen.diffusion.path.Staged. A stage of speed 0 has not begun: it is not seen,
    and does not move. t [B] is one time for all stages. Sites are DiT's.
    """

    spec: DFM
    adaln_only = False  # the final layers are several
    final_layer: Any

    def __init__(self, spec: DFM):
        super().__init__(spec)
        width, channels = spec.width, spec.channels
        patches = [nn.ModuleDict({"proj": nn.Conv2d(channels, width, p, p)}) for p in spec.patches]
        self.x_embedder = nn.ModuleDict({"embedders": nn.ModuleList(patches)})
        final = [FinalLayer(width, p**2 * channels) for p in spec.patches]
        self.final_layer = nn.ModuleDict({"projections": nn.ModuleList(final)})
        self.x_embedder.apply(init.xavier)
        for layer in final:
            init.zeros(layer.linear, layer.adaLN_modulation)
        for name, weight in self.t_embedder.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else _small)(weight)

    def time_embedding(self) -> nn.Module:
        embedding = super().time_embedding
        return StageTimes(embedding() for _ in range(self.spec.decomposition.stages))

    @property
    def state_shape(self) -> tuple[int]:
        """The shape of one x."""
        return (sum(torch.Size(shape).numel() for shape in self.spec.shapes),)

    def state(self, image: Tensor) -> Tensor:
        """Return the state [B, D] of images [B, C, H, W]."""
        return pack(self.spec.decomposition.decompose(image))

    def image(self, x: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of states x [B, D]."""
        return self.spec.decomposition.recompose(self.parts(x))

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return the stages of x [B, D], coarsest first."""
        return unpack(x, self.spec.shapes)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        stages = self.spec.decomposition.stages
        if t.ndim == 1:
            t = torch.stack([t, torch.ones_like(t)], -1)[:, None].expand(-1, stages, -1)
        self.check(x, t, cond, s)
        speeds = t[..., 1].to(x.dtype).unbind(1)
        seen = [part * (speed != 0)[:, None, None, None] for part, speed in zip(self.parts(x), speeds, strict=True)]
        out = self.parts(super().forward(pack(seen), t, cond, s=s, tap=tap))
        return pack([part * speed[:, None, None, None] for part, speed in zip(out, speeds, strict=True)])

    def check(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> None:
        """Raise UserError unless the arguments fit."""
        spec, (n,) = self.spec, self.state_shape
        if tuple(x.shape[1:]) != (n,):
            parts = " and ".join(" x ".join(map(str, shape)) for shape in spec.shapes)
            raise UserError(f"x has shape {list(x.shape)}; this DFM takes [B, {n}]: {parts}")
        if t.shape != (len(x), wanted := spec.decomposition.stages, 2):
            raise UserError(
                f"times of shape {list(t.shape)}; this DFM has {wanted} stages, which need a path staged of "
                f"{wanted - 1} thresholds, one less"
            )
        if s is not None:
            raise UserError("a target time s was given, but this DFM is no flow map and takes only t")
        if spec.classes:
            family.labels(spec, cond, len(x))

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens of a state x, those of all stages summed, with their positions, [B, T, width]."""
        embedders: Any = self.x_embedder["embedders"]
        tokens = sum(e["proj"](part).flatten(2).mT for e, part in zip(embedders, self.parts(x), strict=True))
        return self.pos_embed + tokens

    def head(self, h: Tensor, c: Tensor, size: Sequence[int] = ()) -> Tensor:
        """Return the state [B, D] of the last tokens h [B, T, width] under c [B, width]."""
        layers, spec = self.final_layer["projections"], self.spec
        rows = sides(spec)[0] // spec.patch
        return pack([unpatchify(layer(h, c), p, rows) for layer, p in zip(layers, spec.patches, strict=True)])


class StageTimes(nn.Module):
    """The embeddings of all stages' times, summed: [B, S, 2] -> [B, width]."""

    def __init__(self, embedders: Iterable[nn.Module]):
        super().__init__()
        self.embedders = nn.ModuleList(embedders)

    def forward(self, t: Tensor) -> Tensor:
        return torch.stack([embed(t[:, i, 0]) for i, embed in enumerate(self.embedders)]).sum(0)


def _small(weight: Tensor) -> None:
    nn.init.normal_(weight, std=0.02)
