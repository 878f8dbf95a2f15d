"""bytetriper/RAE: stage2_model.pt of DiT^DH or of the plain DiT on its latents, and ep-*.pt (Zheng et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.config.torch_file import read_torch
from gen.models.dit_dh import DiTDH
from gen.models.interop.lib.dit_layout import grid_side, read_dit_layout
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec, published_heads
from gen.models.interop.lib.rope_table import check_rope, head_width
from gen.models.interop.lib.settings import transport
from gen.models.interop.lib.variants import with_shifts, with_tables
from gen.models.interop.weights import State, Weights
from gen.models.lightning_dit import LightningDiT
from gen.training.run import Run, Sampler

__all__ = ["RAEWeights", "moments_file", "read_moments", "read_statistics"]

EPS = 1e-5  # added to a variance
BASE = 4096  # numbers of a latent for which the grid of times is even
LATENT = {
    "autoencoder": "nyu-visionx/RAE-collections",
    "scale": "1 / sqrt(var + 1e-5), per channel and position, of stat.pt in the same repository",
    "shift": "mean, per channel and position, of the same file",
    "image_range": [0.0, 1.0],
}


@dataclass(frozen=True)
class RAEWeights:
    """The velocity towards noise, whose t = 1 is the noise, of latents normalised per channel and position.

    Sampled by 49 Euler steps between 50 times, shifted to noise by the root of a latent's numbers over 4096, of which
    the last is not 0 but 0.001 before the shift; unguided: the published guide is a second, smaller model.

    Attributes:
        head_depth: number of the head's blocks, where it is as wide as the rest; None to read it off the weights.
        size: height of the latents, where the network has neither pos_embed nor rotary tables.
        heads, head_heads: of attention, where no rotary table shows them; None for those of the published sizes.
        stats: path of the stat.pt that normalised the latents, so that samples can be decoded by an autoencoder without
            statistics of its own; None leaves the manifest to say where it is.
    """

    head_depth: int | None = None
    size: int | None = None
    heads: int | None = None
    head_heads: int | None = None
    stats: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, **dict.fromkeys(("head_depth", "size", "heads", "head_heads"), "[1, inf)"))

    def claims(self, weights: Weights) -> bool:
        return "t_embedder.W" in weights.tensors and "x_embedder.proj.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        weights = replace(weights, tensors=with_shifts(weights.tensors))
        path, parameterisation = transport(weights, "noise", ("velocity",))
        if "s_embedder.proj.weight" in weights.tensors:
            model, notes = self._wide(weights.tensors, preset)
        else:
            conventions: Json = {"time": "gaussian", "time_convention": "noise"}
            model, notes = read_dit_layout(
                weights, "RAE", self.heads, preset, owner=LightningDiT, size=self.size, **conventions
            )
        tensors, more = with_tables(weights.tensors, model)
        shift = max(1.0, math.sqrt(model.channels * model.size**2 / BASE))  # they never shift towards data
        sampler = Sampler(solver="euler", steps=49, grid={"name": "shift", "shift": shift, "stop": 0.001})
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        shape = (model.channels, model.size, model.size)
        statistics = {} if self.stats is None else read_statistics(Path(self.stats), shape)
        return Conversion(run, tensors, LATENT, notes=(*notes, *more), statistics=statistics)

    def _wide(self, tensors: State, preset: str | None) -> tuple[DiTDH, tuple[str, ...]]:
        """Read DiT^DH: rotary tables show the numbers of heads, and widths where the head begins."""
        reader = Reader(tensors, "RAE")
        width, channels, patch, _ = reader.shape("s_embedder.proj.weight", 4)
        head, _, _, _ = reader.shape("x_embedder.proj.weight", 4)
        side, notes = grid_side(reader, width, 0, self.size and self.size // patch, "enc_feat_rope")
        count = reader.count("blocks")
        wide = [i for i in range(count) if reader.shape(f"blocks.{i}.adaLN_modulation.1.weight", 2)[1] == head]
        depth = count - (len(wide) if width != head else self._head_depth(count))
        tables = [name for name in ("enc_feat_rope", "dec_feat_rope") if f"{name}.freqs_cos" in tensors]
        dims = {name: head_width(reader, name) for name in tables}
        shown = {name: reader.ratio(width if name[0] == "e" else head, dim, name) for name, dim in dims.items()}
        inner = shown.get("enc_feat_rope", self.heads)
        fields = {
            "size": side * patch,
            "patch": patch,
            "channels": channels,
            "classes": reader.classes(),
            "width": width,
            "depth": depth,
            "heads": published_heads(DiTDH.presets, inner, width=width, depth=depth),
            "head_width": head,
            "head_depth": count - depth,
            "head_heads": shown.get("dec_feat_rope", self.head_heads) or DiTDH.head_heads,
            "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        }
        notes += [check_rope(reader, name, dim, side) for name, dim in dims.items()]
        return build_spec(DiTDH, preset, fields), tuple(notes)

    def _head_depth(self, count: int) -> int:
        if self.head_depth is None:
            raise UserError(
                f"how many of the {count} blocks are the head's cannot be read off the weights, which are all as wide: "
                'say it, as in --from \'{"name": "rae", "head_depth": 2}\''
            )
        return self.head_depth


def read_statistics(file: Path, shape: tuple[int, ...]) -> State:
    """Return scale and shift of a file of mean and var, [C, H, W] each: x = (latent - mean) / sqrt(var + 1e-5).

    Args:
        file, shape: see `read_moments`.
    """
    mean, std = read_moments(file, shape)
    return {"scale": std.reciprocal().float(), "shift": mean.float()}


def read_moments(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and sqrt(var + 1e-5) of a file of mean and var, float64 [C, H, W] each.

    Args:
        file: path of a stat.pt; UserError for another.
        shape: of a latent.
    """
    if not file.is_file():
        raise UserError(f"stats: {file} does not exist")
    content = read_torch(file)
    given = [content.get(key) for key in ("mean", "var")] if isinstance(content, Mapping) else []
    values = [value.double() for value in given if isinstance(value, Tensor) and tuple(value.shape) == shape]
    if len(values) != 2:
        raise UserError(f"stats: {file} does not hold mean and var of {list(shape)}")
    mean, var = values
    if not bool((var >= 0).all()) or not bool(torch.isfinite(mean).all()):
        raise UserError(f"stats: {file} holds a var below 0, or a mean that is not finite")
    return mean, (var + EPS).sqrt()


def moments_file(mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Return the content of a stat.pt that `read_moments` reads as these, to the bit of float32.

    Args:
        mean, std: float32 [C, H, W]; UserError for a deviation that the formula does not reach.
    """
    var = std.double().square() - EPS
    if bool((var < 0).any()):
        raise UserError(f"stat.pt: deviations are sqrt(var + {EPS}) there, and one here is {float(std.min()):.3g}")
    return {"mean": mean.float(), "var": var.float()}
