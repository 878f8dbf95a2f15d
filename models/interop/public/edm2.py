"""NVlabs/edm2: edm2-img512-xs-2147483-0.135.pkl and its like, or a network's state dict (Karras et al. 2024).

Their .pkl files hold Python objects with the source code of their classes; they are read as data, and none of it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.models.edm2 import EDM2
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec
from gen.models.interop.weights import State, Weights
from gen.training.run import Run, Sampler

__all__ = ["EDM2Weights"]

# Their StabilityVAEEncoder: mean 0 and standard deviation .5, from an assumed mean and deviation per channel.
MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
LATENT = {
    "autoencoder": "stabilityai/sd-vae-ft-mse",
    "scale": [0.5 / std for std in STD],
    "shift": list(MEAN),
    "image_range": [0.0, 1.0],  # they give it pixels over 255, though it was trained on [-1, 1]
}


@dataclass(frozen=True)
class EDM2Weights:
    """EDM's F for data of deviation .5; its time is ln(sigma) / 4. A pickle's own attributes decide where it has them.

    Sampled by 32 Heun steps from sigma 80 to 0.002, unguided: it was trained with a class always, and the published
    guide is a second network.

    Attributes:
        head_width: channels of a head of attention.
    """

    head_width: int = 64

    def __post_init__(self) -> None:
        check_fields(self, head_width="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return "unet.emb_noise.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors = weights.tensors
        fields = {**_levels(tensors), "head_width": self.head_width}
        label, head = "unet.emb_label.weight", "logvar_fourier.freqs"
        fields |= _attributes(weights.attributes, fields)
        fields["classes"] = tensors[label].shape[1] if label in tensors else 0
        fields["uncertainty"] = len(tensors[head]) if head in tensors else 0
        model = build_spec(EDM2, preset, fields)
        sampler = Sampler(solver="heun", steps=32, grid="karras")
        precond = EDMPrecond(weights.attributes.get("sigma_data", 0.5))
        run = Run(model=model, path=EDM(), parameterisation=precond, sampler=sampler, ema=())
        latent: Json = _latent(weights.attributes) if model.channels == len(MEAN) else {"autoencoder": None}
        return Conversion(run, tensors, latent)


def _latent(attributes: Mapping[str, Any]) -> Json:
    """Return how latents become images: as the file's encoder says, x = scale latent + bias, or as published."""
    scale, bias = (attributes.get(f"encoder.{key}") for key in ("scale", "bias"))
    if scale is None or bias is None:
        return LATENT
    if len(scale) != len(MEAN) or len(bias) != len(MEAN) or not all(scale):
        raise UserError(
            f"the file's encoder has scale {scale} and bias {bias}; expected {len(MEAN)} numbers that are not 0"
        )
    shift = [-b / s for b, s in zip(bias, scale, strict=True)]
    name = attributes.get("encoder.vae_name", LATENT["autoencoder"])
    return {**LATENT, "autoencoder": name, "scale": list(scale), "shift": shift}


def _levels(tensors: State) -> Json:
    """Sizes, from names such as unet.enc.64x64_block0.conv_res0.weight and their shapes."""
    reader = Reader(tensors, "EDM2")
    sides = {int(m[1]) for name in tensors if (m := re.match(r"unet\.enc\.(\d+)x\1_", name))}
    if not sides:
        raise UserError("these are no weights of EDM2: no unet.enc.64x64_conv or the like")
    size = max(sides)
    width, channels, _, _ = reader.shape(f"unet.enc.{size}x{size}_conv.weight", 4)
    widths = [
        reader.shape(f"unet.enc.{side}x{side}_block0.conv_res1.weight", 4)[0] for side in sorted(sides, reverse=True)
    ]
    blocks = {name.split(".")[2] for name in tensors if name.startswith(f"unet.enc.{size}x{size}_block")}
    emb, noise = reader.shape("unet.emb_noise.weight", 2)
    attending = {int(m[1]) for name in tensors if (m := re.match(r"unet\.enc\.(\d+)x\1_block\d+\.attn_qkv", name))}
    return {
        "size": size,
        "channels": channels - 1,  # beside a channel of ones
        "width": width,
        "multipliers": tuple(reader.ratio(each, width, "unet.enc") for each in widths),
        "blocks": len(blocks),
        "noise_channels": None if noise == widths[0] else noise,  # their channel_mult_noise and channel_mult_emb
        "emb_channels": None if emb == max(widths) else emb,
        "attention": tuple(sorted(attending, reverse=True)),
    }


def _attributes(attributes: Mapping[str, Any], fields: Json) -> Json:
    """Return the fields of a module that was saved whole, whose blocks must agree; {} for a state dict."""
    found: Json = {}
    for theirs, ours in OURS.items():
        values = {value for name, value in attributes.items() if name.rpartition(".")[2] == theirs}
        if len(values) > 1:
            raise UserError(f"the blocks have {theirs} {', '.join(map(str, sorted(values)))}; expected one for all")
        if values:
            found[ours] = float(values.pop())
    for name, heads in attributes.items():
        if name.endswith(".num_heads") and heads:
            side = int(name.split(".")[-2].partition("x")[0])
            level = (fields["size"] // side).bit_length() - 1
            found["head_width"] = fields["width"] * fields["multipliers"][level] // heads
    return found


OURS = {
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "residual_balance",
    "attn_balance": "attention_balance",
    "clip_act": "clip",
}
