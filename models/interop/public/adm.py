"""openai/guided-diffusion: 64x64_diffusion.pt to 512x512_diffusion.pt, and what its image_train.py saves.

Dhariwal & Nichol 2021; the same names as improved-diffusion's (Nichol & Dhariwal 2021).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec
from gen.models.interop.weights import Weights
from gen.models.unet import UNet
from gen.training.run import Run, Sampler

__all__ = ["ADMWeights"]

PLANS: dict[str, Json] = {
    "ddpm": {"steps": 250, "grid": {"name": "timesteps", "spacing": "linspace"}},
    "ddim": {
        "solver": {"name": "ddim", "clip": True},
        "steps": 25,
        "grid": {"name": "timesteps", "spacing": "leading"},
    },
}


@dataclass(frozen=True)
class ADMWeights:
    """Noise prediction on pixels in [-1, 1], with learned variances where the last layer has twice the channels.

    Sampled with the predicted image cut to [-1, 1], unguided: the published guide is a classifier.

    Attributes:
        size: height and width of the images; None for that of the published model with these levels.
        heads, head_width: of attention, as of UNet, heads 0 for one per head_width channels; None for those of the
            published model.
        qkv_order: "qkv" for their use_new_attention_order, else "heads"; None for that of the published model.
        schedule: of the betas; None for that of the published model, which is cosine for 64 pixels.
        sampler: "ddpm" for the 250 ancestral steps of the repository's settings, "ddim" for its 25 steps of DDIM.
    """

    size: int | None = None
    heads: int | None = None
    head_width: int | None = None
    qkv_order: Literal["qkv", "heads"] | None = None
    schedule: Literal["linear", "cosine"] | None = None
    sampler: Literal["ddpm", "ddim"] = "ddpm"

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        names = ("time_embed.0.weight", "middle_block.1.qkv.weight", "output_blocks.0.0.in_layers.0.weight")
        return all(name in weights.tensors for name in names)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        reader = Reader(weights.tensors, "guided-diffusion's UNetModel")
        shown, attending = _shown(reader)
        row = _published(shown, attending, preset)
        size = self.size or (row and row.size)
        if size is None:
            raise UserError(
                f"the size of the images cannot be read off the weights, and no published model has width "
                f"{shown['width']} and levels {shown['multipliers']}: say it, as in "
                '--from \'{"name": "adm", "size": 64, "heads": 4}\''
            )
        fields = {**shown, "size": size, "attention": tuple(size >> level for level in attending), **self._heads(row)}
        order = self.qkv_order or (row.qkv_order if row else "heads")
        model = build_spec(UNet, preset, {**fields, "qkv_order": order})
        cosine = row is not None and row.size == 64
        path = DDPM(self.schedule or ("cosine" if cosine else "linear"))
        ancestral = {"name": "ancestral", "clip": True, "variance": "learned" if model.learn_sigma else "beta"}
        sampler = Sampler(**{"solver": ancestral, **PLANS[self.sampler]})
        run = Run(model=model, path=path, parameterisation=Eps(), sampler=sampler, ema=())
        said = f"size {size}, {model.heads or f'heads of {model.head_width} channels'}, schedule {path.schedule}"
        return Conversion(run, weights.tensors, {"autoencoder": None}, notes=(f"not in the weights: {said}",))

    def _heads(self, row: UNet | None) -> Json:
        """Return the fields of attention; UserError where they are neither said nor published."""
        given = {"heads": self.heads, "head_width": self.head_width}
        if self.heads or self.head_width:
            return {"heads": 0, **{key: value for key, value in given.items() if value is not None}}
        if row is None:
            raise UserError(
                "the number of heads cannot be read off the weights, and no published model has these sizes: say it, "
                'as in --from \'{"name": "adm", "size": 64, "heads": 4}\', or "head_width"'
            )
        return {"heads": row.heads, "head_width": row.head_width}


def _shown(reader: Reader) -> tuple[Json, tuple[int, ...]]:
    """Return the fields of a UNet that names and shapes show, and the levels that attend."""
    names = reader.tensors
    width = reader.shape("time_embed.0.weight", 2)[1]
    _, channels, _, _ = reader.shape("input_blocks.0.0.weight", 4)
    stages = reader.count("output_blocks")
    ups = sorted(
        int(m[1])
        for name in names
        if (m := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.0|conv)\.weight", name))
    )
    per_level = ups[0] + 1 if ups else stages
    levels = range(stages // per_level)
    firsts = [1 + level * per_level for level in levels]
    widths = [reader.shape(f"input_blocks.{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    out = reader.ratio(reader.shape("out.2.weight", 4)[0], channels, "out.2.weight")
    if channels == 6 and out == 1:
        raise UserError("these are weights of an upsampler, which sees a small image beside x: no such model is here")
    emb, hidden = reader.shape("input_blocks.1.0.emb_layers.1.weight", 2)[0], widths[0]
    label = "label_emb.weight"
    fields = {
        "channels": channels,
        "classes": reader.shape(label, 2)[0] if label in names else 0,
        "width": width,
        "multipliers": tuple(each / width for each in widths),
        "blocks": per_level - 1,
        "learn_sigma": out == 2,
        "scale_shift": reader.ratio(emb, hidden, "input_blocks.1.0.emb_layers.1.weight") == 2,
        "resampling": "conv" if any(name.endswith(".op.weight") for name in names) else "block",
    }
    attending = tuple(
        i for i, first in zip(levels, firsts, strict=True) if f"input_blocks.{first}.1.qkv.weight" in names
    )
    return fields, attending


def _published(shown: Json, attending: tuple[int, ...], preset: str | None) -> Any:
    """Return the published model with these sizes, or the one that is named; None if there is none."""
    if preset is not None:
        return UNet.preset(preset)
    for name in (name for name in UNet.presets if name.startswith("ADM")):
        row = UNet.preset(name)
        alike = all(
            getattr(row, key) == shown[key] for key in ("channels", "width", "blocks", "scale_shift", "resampling")
        )
        levels = tuple(level for level in range(len(row.multipliers)) if row.attends(level))
        if alike and tuple(map(float, row.multipliers)) == shown["multipliers"] and levels == attending:
            return row
    return None
