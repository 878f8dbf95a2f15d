"""NVlabs/edm: edm-cifar10-32x32-uncond-vp.pkl, edm-imagenet-64x64-cond-adm.pkl and the others (Karras et al. 2022).

Their .pkl files hold Python objects with the source code of their classes; they are read as data, and none of it runs.
Names that end in "vp" are DDPM++, in "ve" NCSN++, in "adm" ADM's network; all are trained as EDM trains. Those of the
folder "baseline" are not, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec
from gen.models.interop.weights import State, Weights
from gen.models.song_unet import BOX, SongUNet
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
        if weights.attributes and "sigma_data" not in weights.attributes:
            raise UserError(
                "this is a baseline of EDM's repository, in the terms of VP or VE, and not as EDM trains: none here"
            )
        model, tensors, dropped = self._adm(weights, preset) if _is_adm(weights) else _song(weights, preset)
        precond = EDMPrecond(weights.attributes.get("sigma_data", 0.5))
        sampler = Sampler(**PLANS[self.sampler])
        run = Run(model=model, path=EDM(), parameterisation=precond, sampler=sampler, ema=())
        return Conversion(run, tensors, {"autoencoder": None}, dropped)

    def _adm(self, weights: Weights, preset: str | None) -> tuple[UNet, State, dict[str, str]]:
        """Return DhariwalUNet's spec, its tensors by our names, and those that are left out, with the reason."""
        shown, sides = _shown(Reader(weights.tensors, "EDM's DhariwalUNet"))
        fields = {**shown, "heads": 0, "head_width": self.head_width, "qkv_order": "heads", "resampling": "block"}
        model: UNet = build_spec(UNet, preset, {**fields, "scale_shift": True})
        names = dict(_names(sides, model))
        tensors: dict[str, Tensor] = {}
        dropped: dict[str, str] = {}
        for name, value in weights.tensors.items():
            stem, _, kind = name.rpartition(".")
            if reason := _left_out(name):
                dropped[name] = reason
            elif stem in names:
                tensors[f"{names[stem]}.{kind}"] = self._converted(stem, value)
            elif name == "map_label.weight":
                tensors["label_emb.weight"] = value.T.contiguous()
            else:
                tensors[name] = value  # the list of what does not fit will name it
        return model, tensors, dropped

    def _converted(self, stem: str, value: Tensor) -> Tensor:
        """Return a tensor in our layout: q, k and v lie head by head, theirs number by number within a head."""
        part = stem.rpartition(".")[2]
        if part == "qkv":
            value = value.unflatten(0, (-1, self.head_width, 3)).transpose(1, 2).flatten(0, 2)
        return value.flatten(2) if part in ("qkv", "proj") and value.ndim == 4 else value


def _is_adm(weights: Weights) -> bool:
    return "out_conv.weight" in weights.tensors


def _left_out(name: str) -> str:
    """Return the reason why a tensor is none of ours; "" for all others."""
    if name.endswith(".resample_filter"):
        return "a fixed filter"
    return "of augmentation in training" if name.startswith("map_augment.") else ""


def _sides(names: Iterable[str]) -> list[int]:
    """Return the sides of the levels, the finest first."""
    return sorted({int(m[1]) for name in names if (m := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)


def _song(weights: Weights, preset: str | None) -> tuple[SongUNet, State, dict[str, str]]:
    """Return SongUNet's spec, its tensors, which have our names, and those that are left out, with the reason."""
    names, reader = weights.tensors, Reader(weights.tensors, "EDM's SongUNet")
    sides = _sides(names)
    if not sides:
        raise UserError(f"these are no weights of EDM: no enc.32x32_conv; they begin with {next(iter(names))}")
    if any("_aux_skip" in name or "_aux_up" in name for name in names):
        raise UserError("EDM's SongUNet with shortcuts of the picture (skip): none here; allowed: standard, residual")
    first = f"enc.{sides[0]}x{sides[0]}"
    width, channels = reader.shape(f"{first}_conv.weight", 4)[:2]
    noise, label = reader.shape("map_layer0.weight", 2)[1], "map_label.weight"
    filters = [name for name in names if name.endswith("_down.conv0.resample_filter")]
    fields: Json = {
        "size": sides[0],
        "channels": channels,
        "classes": reader.shape(label, 2)[1] if label in names else 0,
        "width": width,
        "multipliers": tuple(reader.shape(f"enc.{s}x{s}_block0.conv0.weight", 4)[0] // width for s in sides),
        "blocks": len({name.split(".")[1] for name in names if name.startswith(f"{first}_block")}),
        "attention": tuple(side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in names),
        "waves": "random" if "map_noise.freqs" in names else "positional",
        "noise_multiplier": noise // width,
        "residual": any("_aux_residual" in name for name in names),
        "filter": _taps(reader, filters[0]) if filters else BOX,
    }
    dropped = {name: reason for name in names if (reason := _left_out(name))}
    kept = {name: value for name, value in names.items() if name not in dropped}
    return build_spec(SongUNet, preset, fields), kept, dropped


def _taps(reader: Reader, name: str) -> tuple[float, ...]:
    """Return the taps of a filter, the first of which is 1, from its plane [1, 1, k, k], their outer product."""
    reader.shape(name, 4)
    line = reader.tensors[name][0, 0].double().sum(0)
    if not float(line[0]):
        raise UserError(f"{name} begins with 0: no filter of EDM's")
    return tuple(round(float(tap), 6) for tap in line / line[0])


def _shown(reader: Reader) -> tuple[Json, list[int]]:
    """Return the fields of a UNet that names and shapes show, and the sides of its levels, the finest first."""
    names = reader.tensors
    sides = _sides(names)
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
