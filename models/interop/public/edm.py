"""NVlabs/edm: edm-imagenet-64x64-cond-adm.pkl and its like, whose network is ADM's (Karras et al. 2022).

Their .pkl files hold Python objects with the source code of their classes; they are read as data, and none of it runs.
The smaller models of the repository are another network, SongUNet, which is none of gen.models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec
from gen.models.interop.weights import Weights
from gen.models.unet import UNet
from gen.training.run import Run, Sampler

__all__ = ["EDMWeights"]

PLANS: dict[str, Json] = {
    "ode": {"solver": "heun", "steps": 18, "grid": "karras"},
    "sde": {
        "solver": {"name": "heun", "churn": 40 / 256, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
        "steps": 256,
        "grid": "karras",
    },
}
PARTS = {  # of a block: its residual's, and those of the attention behind it
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
    "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
WHOLE = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}


@dataclass(frozen=True)
class EDMWeights:
    """EDM's F for data of deviation .5, on pixels in [-1, 1]; its time is ln(sigma) / 4.

    Labels are never left out in training, so it is sampled unguided.

    Attributes:
        head_width: channels of a head of attention.
        sampler: "ode" for 18 Heun steps, the default of the repository's generate.py; "sde" for the 256 stochastic
            steps that its README has for ImageNet.
    """

    head_width: int = 64
    sampler: Literal["ode", "sde"] = "ode"

    def __post_init__(self) -> None:
        check_fields(self, head_width="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return "map_layer0.weight" in weights.tensors and any(n.startswith("enc.") for n in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        reader = Reader(weights.tensors, "EDM's DhariwalUNet")
        if "out_conv.weight" not in weights.tensors:
            raise UserError(
                "these are weights of EDM's SongUNet (DDPM++, NCSN++), and no model here is that network; its "
                "DhariwalUNet, that of ImageNet at 64 pixels, is read"
            )
        shown, sides = _shown(reader)
        fields = {**shown, "heads": 0, "head_width": self.head_width, "qkv_order": "heads", "resampling": "block"}
        model = build_spec(UNet, preset, {**fields, "scale_shift": True})
        names = dict(_names(sides, model))
        tensors: dict[str, Tensor] = {}
        dropped: dict[str, str] = {}
        for name, value in weights.tensors.items():
            stem, _, kind = name.rpartition(".")
            if kind == "resample_filter" or stem == "map_augment":
                dropped[name] = "a fixed filter" if kind == "resample_filter" else "of augmentation in training"
            elif stem in names:
                tensors[f"{names[stem]}.{kind}"] = self._converted(stem, value)
            elif name == "map_label.weight":
                tensors["label_emb.weight"] = value.T.contiguous()
            else:
                tensors[name] = value  # the list of what does not fit will name it
        precond = EDMPrecond(weights.attributes.get("sigma_data", 0.5))
        sampler = Sampler(**PLANS[self.sampler])
        run = Run(model=model, path=EDM(), parameterisation=precond, sampler=sampler, ema=())
        return Conversion(run, tensors, {"autoencoder": None}, dropped)

    def _converted(self, stem: str, value: Tensor) -> Tensor:
        """Return a tensor in our layout: q, k and v lie head by head, theirs number by number within a head."""
        part = stem.rpartition(".")[2]
        if part == "qkv":
            value = value.unflatten(0, (-1, self.head_width, 3)).transpose(1, 2).flatten(0, 2)
        return value.flatten(2) if part in ("qkv", "proj") and value.ndim == 4 else value


def _shown(reader: Reader) -> tuple[Json, list[int]]:
    """Return the fields of a UNet that names and shapes show, and the sides of its levels, the finest first."""
    names = reader.tensors
    sides = sorted({int(m[1]) for name in names if (m := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)
    width = reader.shape("map_layer0.weight", 2)[1]
    widths = [reader.shape(f"enc.{side}x{side}_block0.conv0.weight", 4)[0] for side in sides]
    if min(widths) < 128:
        raise UserError(
            f"{reader.origin} with levels of {widths} channels has norms of fewer groups than 32: none here"
        )
    first = f"enc.{sides[0]}x{sides[0]}"
    label = "map_label.weight"
    return {
        "size": sides[0],
        "channels": reader.shape(f"{first}_conv.weight", 4)[1],
        "classes": reader.shape(label, 2)[1] if label in names else 0,
        "width": width,
        "multipliers": tuple(each / width for each in widths),
        "blocks": len({name.split(".")[1] for name in names if name.startswith(f"{first}_block")}),
        "attention": tuple(side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in names),
    }, sides


def _names(sides: list[int], model: UNet) -> Iterator[tuple[str, str]]:
    """Yield (their name, ours) of every module with weights."""

    def block(theirs: str, ours: str, attention: str = "") -> Iterator[tuple[str, str]]:
        yield from ((f"{theirs}.{part}", f"{ours}.{mine}") for part, mine in PARTS.items())
        if attention:
            yield from ((f"{theirs}.{part}", f"{attention}.{mine}") for part, mine in ATTENTION.items())

    yield from WHOLE.items()
    yield f"enc.{sides[0]}x{sides[0]}_conv", "input_blocks.0.0"
    stage = 0
    for side in sides:
        if side != sides[0]:
            stage += 1
            yield from block(f"enc.{side}x{side}_down", f"input_blocks.{stage}.0")
        for i in range(model.blocks):
            stage += 1
            yield from block(f"enc.{side}x{side}_block{i}", f"input_blocks.{stage}.0", f"input_blocks.{stage}.1")
    last = f"dec.{sides[-1]}x{sides[-1]}"
    yield from block(f"{last}_in0", "middle_block.0", "middle_block.1")
    yield from block(f"{last}_in1", "middle_block.2")
    stage = -1
    for side in reversed(sides):
        if side != sides[-1]:  # at the end of the coarser level's last stage
            yield from block(f"dec.{side}x{side}_up", f"output_blocks.{stage}.{1 + (side // 2 in model.attention)}")
        for i in range(model.blocks + 1):
            stage += 1
            yield from block(f"dec.{side}x{side}_block{i}", f"output_blocks.{stage}.0", f"output_blocks.{stage}.1")
