"""CompVis/latent-diffusion and hustvl/LightningDiT: first-stage autoencoders, kl and vq, and VA-VAE (.ckpt, .pt)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.autoencoders.kl import KL
from gen.models.autoencoders.lib.ldm import to_diffusers, to_ldm
from gen.models.autoencoders.vq import VQ
from gen.models.interop.lib.inferred import Conversion, Reader
from gen.models.interop.weights import Weights
from gen.training.run import Run

__all__ = ["LDMAutoencoder"]

PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quantize")
CODEBOOK = "quantize.embedding.weight"
LEFT_OUT = "of its training: loss, discriminator or alignment"


@dataclass(frozen=True)
class LDMAutoencoder:
    """An autoencoder of pictures in [-1, 1]: `kl` (f8d4, VA-VAE's f16d32 ...) or, with a codebook, `vq` (f4).

    Attention is where the file has it. Parts of the training are left out: VA-VAE's foundation model and projection,
    loss and discriminator.

    Attributes:
        size: height of the pictures, which the network does not depend on.
        groups: of group norms, which weights do not show; 32 as published.
        classes: labels of the pictures, of which nothing depends.
        codebook, commitment: weights of the losses of a codebook, for training it on.
    """

    size: int | tuple[int, int] = 256
    groups: int = 32
    classes: int = 0
    codebook: float = 1.0
    commitment: float = 0.25

    def __post_init__(self) -> None:
        check_fields(self, size="[1, inf)", groups="[1, inf)", classes="[0, inf)")

    def claims(self, weights: Weights) -> bool:
        names = ("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", "quant_conv.weight")
        return all(name in weights.tensors for name in names)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        kept = {name: value for name, value in weights.tensors.items() if name.partition(".")[0] in PARTS}
        dropped = {name: LEFT_OUT for name in weights.tensors if name not in kept}
        owner, fields = self._fields(Reader(kept, "LDM's autoencoders"))
        if preset is not None:
            published = {key: value for key, value in owner.preset_fields(preset).items() if key in fields}
            if differing := [f"{key} {fields[key]}" for key, value in published.items() if fields[key] != value]:
                raise UserError(f"the weights are not of preset {preset!r}: they have {', '.join(differing)}")
        model = owner(**fields)
        renamed = to_diffusers(kept, len(model.multipliers))
        return Conversion(Run(model=model, ema=()), {f"net.{name}": v for name, v in renamed.items()}, {}, dropped)

    def publish(self, state: Mapping[str, Tensor]) -> Json:
        """Return what a checkpoint of Lightning holds."""
        names = {name.removeprefix("net."): value for name, value in state.items()}
        levels = len({name.split(".")[2] for name in names if name.startswith("encoder.down_blocks.")})
        return {"state_dict": to_ldm(names, levels)}

    def _fields(self, reader: Reader) -> tuple[Any, Json]:
        """Read the sizes off the shapes."""
        levels, blocks = reader.count("encoder.down"), reader.count("encoder.down.0.block")
        width, channels, _, _ = reader.shape("encoder.conv_in.weight", 4)
        latent = reader.shape("post_quant_conv.weight", 4)
        widths = [reader.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
        attends = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in reader.tensors]
        if latent[0] != latent[1]:
            raise UserError(
                f"these autoencoders have {latent[1]} numbers between the two 1 x 1 convolutions and {latent[0]} "
                "behind the second; those that are known here have as many"
            )
        fields: Json = {
            "size": self.size,
            "channels": channels,
            "classes": self.classes,
            "latent_channels": latent[1],
            "width": width,
            "multipliers": tuple(reader.ratio(one, width, "a level's width") for one in widths),
            "blocks": blocks,
            "groups": self.groups,
            "attention": "encoder.mid.attn_1.q.weight" in reader.tensors,
            "attention_levels": tuple(attends),
        }
        if CODEBOOK not in reader.tensors:
            return KL, fields
        vectors = reader.shape(CODEBOOK, 2)[0]
        return VQ, {**fields, "vectors": vectors, "codebook": self.codebook, "commitment": self.commitment}
