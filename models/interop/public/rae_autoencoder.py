"""bytetriper/RAE: decoders (model.pt of nyu-visionx/RAE-collections); and folders of diffusers' AutoencoderRAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, part
from gen.diffusion.alignment import Encoder
from gen.models.autoencoders.rae import PIXELS, RAE
from gen.models.encoders.siglip2 import SigLIP2
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec, published_heads
from gen.models.interop.lib.rae_folder import decoder_from_diffusers, encoder_from_diffusers, encoder_of, statistics_of
from gen.models.interop.public.rae import moments_file, read_moments
from gen.models.interop.weights import State, Weights
from gen.training.run import Run

__all__ = ["RAEDecoder"]

EXAMPLE = '\'{"name": "rae_autoencoder", "encoder": {"name": "dinov2", "path": FOLDER, "norm": "plain"}}\''
ELSEWHERE = "the frozen encoder's, which is read from its own folder"


@dataclass(frozen=True)
class RAEDecoder:
    """A decoder of pictures in [0, 1] from the tokens of a frozen encoder; a folder of diffusers holds that too.

    A file of decoder weights says nothing of its encoder, which has to be given, and normalised latents come from a
    stat.pt: it is kept as what the autoencoder states, for `--data.standardise autoencoder`.

    Attributes:
        encoder: see gen.models.encoders; None for a folder of diffusers alone.
        stats: path of the stat.pt, mean and var of every position; None for none.
        heads: of the decoder's attention; None for those of the published sizes.
        pixel_mean, pixel_std: of the encoder's pictures in [0, 1]; None for 0.5 with siglip2, ImageNet's with others.
    """

    encoder: Any = part("models.encoders", kinds=(Encoder,), default=None)
    stats: str | None = None
    heads: int | None = None
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", pixel_std="(0, inf)")

    def claims(self, weights: Weights) -> bool:
        return any(f"{prefix}decoder_pred.weight" in weights.tensors for prefix in ("", "decoder."))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        whole = (weights.config or {}).get("_class_name") == "AutoencoderRAE"
        return self._folder(weights, preset) if whole else self._decoder(weights, preset)

    def publish(self, state: Mapping[str, Tensor]) -> Json:
        """Return what a model.pt holds."""
        return {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}

    def beside(self, state: Mapping[str, Tensor]) -> dict[str, Json]:
        """Return the content of files beside a model.pt by the field that names them: a stat.pt of stored statistics.

        Args:
            state: as of publish.
        """
        stored = "latent_mean" in state
        return {"stats": moments_file(state["latent_mean"], state["latent_std"])} if stored else {}

    def _decoder(self, weights: Weights, preset: str | None) -> Conversion:
        """Convert the authors' weights, of the decoder alone or in a training's file."""
        inside = any(name.startswith("decoder.decoder_") for name in weights.tensors)
        kept = {name.removeprefix("decoder."): v for name, v in weights.tensors.items() if _is_decoder(name, inside)}
        dropped = {name: ELSEWHERE for name in weights.tensors if not _is_decoder(name, inside)}
        if self.encoder is None:
            raise UserError(f"a file of RAE's decoder does not hold the encoder: say which, as in --from {EXAMPLE}")
        if getattr(self.encoder, "norm", "plain") != "plain":
            raise UserError(f"the encoder's norm is {self.encoder.norm}; RAE's tokens come after a plain one")
        fields = self._fields(kept, None)
        tensors: dict[str, Tensor] = {f"decoder.{name}": value for name, value in kept.items()}
        if self.stats is not None:
            shape = (fields["dim"], fields["grid"], fields["grid"])
            mean, std = read_moments(Path(self.stats), shape)
            tensors |= {"latent_mean": mean.float(), "latent_std": std.float()}
            fields["statistics"] = fields["grid"]
        model = self._model(fields, self.encoder, preset)
        return Conversion(Run(model=model, ema=()), tensors, {}, dropped)

    def _folder(self, weights: Weights, preset: str | None) -> Conversion:
        """Convert a folder of diffusers, whose encoder becomes part of the checkpoint."""
        config: Json = dict(weights.config or {})
        if self.encoder is not None or self.stats is not None:
            raise UserError("a folder of AutoencoderRAE holds its encoder and statistics: leave out encoder and stats")
        encoder = encoder_of(config, weights.tensors)
        kept = decoder_from_diffusers(weights.tensors, config, encoder.grid)
        fields = self._fields(kept, int(config["decoder_num_attention_heads"]))
        for name, key in (("pixel_mean", "encoder_mean"), ("pixel_std", "encoder_std")):
            fields[name] = tuple(weights.tensors[key].flatten().tolist())
        tensors: dict[str, Tensor] = {f"decoder.{name}": value for name, value in kept.items()}
        tensors |= encoder_from_diffusers(weights.tensors, encoder)
        mean, std = statistics_of(weights.tensors, config, encoder.dim)
        tensors |= {"latent_mean": mean, "latent_std": std}
        model = self._model({**fields, "statistics": mean.shape[1]}, encoder, preset)
        return Conversion(Run(model=model, ema=()), tensors, {}, notes=("its encoder is part of the checkpoint",))

    def _fields(self, kept: State, heads: int | None) -> Json:
        """Read the sizes off the shapes; `dim` and `grid` are the encoder's."""
        reader = Reader(kept, "RAE's decoder")
        width, dim = reader.shape("decoder_embed.weight", 2)
        depth = reader.count("decoder_layers")
        pixels, channels = reader.shape("decoder_pred.weight", 2)[0], 3
        if math.isqrt(pixels // 3) ** 2 * 3 != pixels:
            channels = 1
        sizes = {"width": width, "depth": depth}
        return {
            **sizes,
            "dim": dim,
            "grid": reader.side(reader.shape("decoder_pos_embed", 3)[1] - 1),
            "patch": reader.side(pixels // channels),
            "channels": channels,
            "heads": heads or published_heads(RAE.presets, self.heads, **sizes),
            "hidden": reader.shape("decoder_layers.0.intermediate.dense.weight", 2)[0],
        }

    def _model(self, fields: Json, encoder: Any, preset: str | None) -> RAE:
        given = {"dim": encoder.dim, "grid": encoder.grid}
        if wrong := [f"{key} {fields[key]} (the encoder's {value})" for key, value in given.items()
                     if fields[key] != value]:  # fmt: skip
            raise UserError(f"the weights decode other tokens than this encoder's: {', '.join(wrong)}")
        own = {key: value for key in ("pixel_mean", "pixel_std") if (value := getattr(self, key)) is not None}
        usual: Json = {"pixel_mean": (0.5,), "pixel_std": (0.5,)} if isinstance(encoder, SigLIP2) else PIXELS
        sizes = {key: value for key, value in fields.items() if key not in ("dim", "grid", "patch")}
        size = fields["patch"] * fields["grid"]
        model: RAE = build_spec(RAE, preset, {**usual, **sizes, **own, "size": size, "encoder": encoder})
        return model


def _is_decoder(name: str, inside: bool) -> bool:
    """Return whether a tensor is the decoder's: all of a file of the decoder, or those with its prefix."""
    return name.startswith("decoder.decoder_") or name == "decoder.trainable_cls_token" if inside else True
