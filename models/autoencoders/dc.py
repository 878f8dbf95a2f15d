"""The deep compression autoencoder of SANA, diffusers' AutoencoderDC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.autoencoder import Posterior, Statistics
from gen.models.autoencoders.lib.network import Network, check_images, check_latents, of_diffusers, stated
from gen.models.layers import family

__all__ = ["DC"]


def _published(latent_channels: int, extra: int) -> Json:
    """Return the fields of the ImageNet models, whose latents are 32 times 2^extra smaller."""
    return {
        "size": 32 * 2**extra * 8,
        "latent_channels": latent_channels,
        "widths": (128, 256, 512, 512, 1024, 1024, 2048, 2048)[: 6 + extra],
        "encoder_blocks": (0, 4, 8, 2, 2, 2, 2, 2)[: 6 + extra],
        "decoder_blocks": (0, 5, 10, 2, 2, 2, 2, 2)[: 6 + extra],
        "attention_from": 3,
        "batch_norm": True,
        "head_width": 32,
    }


@dataclass(frozen=True)
class DC(family.Family):
    """DC-AE (Chen et al. 2024): residuals that move space to channels, and linear attention at low resolution.

    Latents are points, smaller than pictures by 2^(len(widths) - 1). Presets: "f32c32-sana", "f32c32", "f64c128",
    "f128c512" (those of ImageNet), and "digits".

    Attributes:
        size: height and width of the pictures; one number for squares.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        latent_channels: of the latents.
        widths: channels of each level.
        encoder_blocks, decoder_blocks: of each level; only the first may have none.
        attention_from: first level of blocks with attention; len(widths) for none.
        multiscale: whether attention has keys of 5 x 5 neighbourhoods too, as SANA's.
        shuffle: whether levels are joined by pixel (un)shuffles; else by strided and interpolated convolutions, SANA's.
        batch_norm: whether the decoder's levels before attention_from have batch norms and ReLU, as those of ImageNet.
        head_width: numbers of a head; 32 as published.
        scale: factor that the latents are stated to need; 0.41407 in SANA.
    """

    presets: ClassVar[family.Presets] = {
        "f32c32-sana": {
            "size": 1024, "latent_channels": 32, "widths": (128, 256, 512, 512, 1024, 1024),
            "encoder_blocks": (2, 2, 2, 3, 3, 3), "decoder_blocks": (3,) * 6, "attention_from": 3, "multiscale": True,
            "shuffle": False, "head_width": 32, "scale": 0.41407,
        },
        "f32c32": _published(32, 0),
        "f64c128": _published(128, 1),
        "f128c512": _published(512, 2),
        "digits": {
            "size": 8, "channels": 1, "classes": 10, "latent_channels": 2, "widths": (16, 32), "encoder_blocks": (1, 1),
            "decoder_blocks": (1, 1), "attention_from": 1,
        },
    }  # fmt: skip

    size: int | tuple[int, int] = 32
    channels: int = 3
    classes: int = 0
    latent_channels: int = 8
    widths: tuple[int, ...] = (32, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_blocks: tuple[int, ...] = (1, 1, 1)
    attention_from: int = 2
    multiscale: bool = False
    shuffle: bool = True
    batch_norm: bool = False
    head_width: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        one = dict.fromkeys(("size", "channels", "latent_channels", "widths", "head_width"), "[1, inf)")
        blocks = dict.fromkeys(("encoder_blocks", "decoder_blocks", "classes"), "[0, inf)")
        check_fields(self, scale="(0, inf)", **one, **blocks)
        levels = len(self.widths)
        if not 0 <= self.attention_from <= levels:
            raise UserError(
                f"DC.attention_from {self.attention_from} must be in [0, {levels}] for widths {self.widths}"
            )
        for name in ("encoder_blocks", "decoder_blocks"):
            if len(getattr(self, name)) != levels or 0 in getattr(self, name)[1:]:
                raise UserError(f"DC.{name} {getattr(self, name)} must be as many as widths, and only the first 0")
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if any(side % 2 ** (levels - 1) for side in sides):
            raise UserError(f"DC.size {self.size} must be divisible by {2 ** (levels - 1)}, of {levels} levels")
        family.divisible(self, "widths", self.head_width, "head_width")
        self._check_shortcuts()

    def _check_shortcuts(self) -> None:
        """Refuse widths that the residuals, which repeat or average channels, cannot join."""
        pairs = [(2 * 2 * a, b) for a, b in zip(self.widths, self.widths[1:], strict=False)]
        pairs += [(self.widths[-1], self.latent_channels)]
        if any(a % b for a, b in pairs):
            raise UserError(
                f"DC: widths = {self.widths}, latent_channels = {self.latent_channels}; 4 times a level's width must "
                "be a multiple of the next one's, and the last one's of latent_channels"
            )

    def build(self) -> nn.Module:
        """Return the network, freshly initialised."""
        levels = range(len(self.widths))
        attends = [level >= self.attention_from for level in levels]
        kinds = tuple("EfficientViTBlock" if own else "ResBlock" for own in attends)
        scales = tuple((5,) if own and self.multiscale else () for own in attends)
        plain = [self.batch_norm and not own for own in attends]
        config = {
            "in_channels": self.channels,
            "latent_channels": self.latent_channels,
            "attention_head_dim": self.head_width,
            "scaling_factor": self.scale,
            **{f"{side}_block_types": kinds for side in ("encoder", "decoder")},
            **{f"{side}_block_out_channels": self.widths for side in ("encoder", "decoder")},
            **{f"{side}_qkv_multiscales": scales for side in ("encoder", "decoder")},
            "encoder_layers_per_block": self.encoder_blocks,
            "decoder_layers_per_block": self.decoder_blocks,
            "downsample_block_type": "pixel_unshuffle" if self.shuffle else "conv",
            "upsample_block_type": "pixel_shuffle" if self.shuffle else "interpolate",
            "decoder_norm_types": tuple("batch_norm" if own else "rms_norm" for own in plain),
            "decoder_act_fns": tuple("relu" if own else "silu" for own in plain),
        }
        return DCNet(self, of_diffusers("AutoencoderDC", **config))


class DCNet(Network):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it."""

    gaussian = False

    def __init__(self, spec: DC, net: Any) -> None:
        super().__init__(spec)
        self.net = net
        self.channels, self.stride = spec.latent_channels, 2 ** (len(spec.widths) - 1)

    @property
    def statistics(self) -> Statistics | None:
        """Those of the scale, unless it changes nothing."""
        return stated(self.spec.scale)

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        return Posterior(self.net.encode(images).latent)

    def decode(self, latents: Tensor) -> Tensor:
        check_latents(self, latents)
        images: Tensor = self.net.decode(latents).sample
        return images

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        last = self.net.decoder.conv_out
        weight: nn.Parameter = getattr(last, "conv", last).weight
        return weight

    @property
    def latent_layer(self) -> nn.Parameter:
        """The weight of the encoder's last convolution."""
        weight: nn.Parameter = self.net.encoder.conv_out.weight
        return weight
