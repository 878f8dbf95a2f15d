"""Folders of diffusers' AutoencoderKL, VQModel and AutoencoderDC, to be trained on: as kl, vq and dc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.autoencoders.dc import DC
from gen.models.autoencoders.kl import KL
from gen.models.autoencoders.vq import VQ
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.weights import Weights
from gen.training.run import Run

__all__ = ["DiffusersAutoencoder"]


@dataclass(frozen=True)
class DiffusersAutoencoder:
    """An autoencoder of pictures in [-1, 1] as diffusers saved it, with its scaling and shift factor.

    As --autoencoder such a folder needs no import; this is for training on from its weights.

    Attributes:
        classes: labels of the pictures, of which nothing depends.
    """

    classes: int = 0

    def __post_init__(self) -> None:
        check_fields(self, classes="[0, inf)")

    def claims(self, weights: Weights) -> bool:
        return (weights.config or {}).get("_class_name") in FIELDS

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        config: Json = {key: value for key, value in (weights.config or {}).items() if value is not None}
        if preset is not None:
            raise UserError(f"preset {preset!r}: a folder of diffusers says its sizes in config.json; leave it out")
        kind = str(config.get("_class_name"))
        if kind not in FIELDS:
            raise UserError(f"this is no folder of diffusers' {', '.join(FIELDS)}: its config.json says {kind}")
        owner, fields = FIELDS[kind]
        try:
            model = owner(**fields(config), classes=self.classes)
        except KeyError as error:
            raise UserError(f"config.json of the {kind} does not say {error}") from None
        with torch.device("meta"):
            built: Any = model.build()
        made = {key: _plain(value) for key, value in built.net.config.items()}
        others = {key: value for key, value in config.items() if key in made and _plain(value) != made[key]}
        if wrong := {key: value for key, value in others.items() if key not in ("sample_size", "force_upcast")}:
            said = ", ".join(f"{key} {value} (here {made[key]})" for key, value in wrong.items())
            raise UserError(f"this {kind} differs from what {owner.__name__} can be: {said}")
        return Conversion(Run(model=model, ema=()), {f"net.{name}": v for name, v in weights.tensors.items()}, {})


def _levels(config: Mapping[str, Any]) -> Json:
    """Return the fields of an AutoencoderKL or a VQModel."""
    widths, kinds = config["block_out_channels"], config["down_block_types"]
    size = config.get("sample_size", 256)
    return {
        "size": tuple(size) if isinstance(size, list) else size,
        "channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "width": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "blocks": config["layers_per_block"],
        "groups": config["norm_num_groups"],
        "attention": config.get("mid_block_add_attention", True),
        "attention_levels": tuple(i for i, kind in enumerate(kinds) if kind.startswith("Attn")),
        "scale": config.get("scaling_factor", 1.0),
    }


def _kl(config: Mapping[str, Any]) -> Json:
    joined = config.get("use_quant_conv", True)
    return {**_levels(config), "shift": config.get("shift_factor", 0.0), "quant_conv": joined}


def _vq(config: Mapping[str, Any]) -> Json:
    return {**_levels(config), "vectors": config["num_vq_embeddings"]}


def _dc(config: Mapping[str, Any]) -> Json:
    widths = config["encoder_block_out_channels"]
    kinds, scales = config["encoder_block_types"], config["encoder_qkv_multiscales"]
    kinds = [kinds] * len(widths) if isinstance(kinds, str) else list(kinds)
    norms = config.get("decoder_norm_types", "rms_norm")
    return {
        "size": 2 ** (len(widths) - 1) * 8,
        "channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "widths": tuple(widths),
        "encoder_blocks": tuple(config["encoder_layers_per_block"]),
        "decoder_blocks": tuple(config["decoder_layers_per_block"]),
        "attention_from": kinds.index("EfficientViTBlock") if "EfficientViTBlock" in kinds else len(widths),
        "multiscale": any(scales),
        "shuffle": config["downsample_block_type"] == "pixel_unshuffle",
        "batch_norm": "batch_norm" in norms,
        "head_width": config["attention_head_dim"],
        "scale": config.get("scaling_factor", 1.0),
    }


FIELDS: Mapping[str, tuple[Any, Callable[[Mapping[str, Any]], Json]]] = {
    "AutoencoderKL": (KL, _kl),
    "VQModel": (VQ, _vq),
    "AutoencoderDC": (DC, _dc),
}


def _plain(value: Any) -> Any:
    """Return a value of a config with lists for tuples."""
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
