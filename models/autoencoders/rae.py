"""The representation autoencoder: a frozen encoder's tokens are the latents, and a ViT decodes them (Zheng et al.)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, part
from gen.diffusion.alignment import Encoder
from gen.diffusion.autoencoder import Posterior, Statistics
from gen.diffusion.tap import Tap
from gen.models.autoencoders.lib.network import Network, check_images, check_latents
from gen.models.autoencoders.lib.vit_decoder import ViTDecoder
from gen.models.layers import family

__all__ = ["RAE"]

PIXELS: Json = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}  # ImageNet's


def _published(width: int, depth: int, heads: int, hidden: int) -> Json:
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
    return {"size": 256, "channels": 3, "classes": 0, **sizes, **PIXELS}


@dataclass(frozen=True)
class RAE(family.Family):
    """Latents are the patch tokens of a frozen encoder, after its last norm without gain and bias (arXiv 2510.11690).

    They are points [dim, grid, grid], as the encoder gives them; a denoiser learns them normalised at each position, by
    `gen encode`'s exact statistics (--data.standardise position), or by those of a published stat.pt, which an import
    keeps (standardise autoencoder). Noise-augmented decoding, z + sigma n in training alone, is cond["perturbation"].
    The encoder is no part of the checkpoints unless it is gen.models.encoders.vit, whose weights are nowhere else.
    Presets: "ViT-B", "ViT-L", "ViT-XL", of 86,237,952, 303,887,104 and 415,056,640 parameters for tokens of 768, and
    "digits", which are the defaults.

    Attributes:
        encoder: see gen.models.encoders; RAE's are dinov2, siglip2 and mae with norm = "plain".
        size: height and width of the pictures, a multiple of the encoder's grid; the encoder sees them resized to its
            own side, and pictures of another size are refused.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        width, depth, heads: of the decoder's tokens, blocks and attention.
        hidden: width of the decoder's MLP.
        pixel_mean, pixel_std: of pictures in [0, 1], one number or one for each channel: the decoder's output is in
            their units, the encoder's.
        statistics: side of stored mean and deviation of latents: the grid, 1 for one of each channel, 0 for none.
    """

    image_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    presets: ClassVar[family.Presets] = {
        "ViT-B": _published(768, 12, 12, 3072),
        "ViT-L": _published(1024, 24, 16, 4096),
        "ViT-XL": _published(1152, 28, 16, 4096),
        "digits": {"size": 8, "channels": 1, "classes": 10},
    }

    encoder: Any = part("models.encoders", kinds=(Encoder,), default="digits_cnn")
    size: int = 8
    channels: int = 1
    classes: int = 0
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int = 128
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_std: tuple[float, ...] = (0.5,)
    statistics: int = 0

    def __post_init__(self) -> None:
        names = ("size", "channels", "width", "depth", "heads", "hidden")
        one = dict.fromkeys(names, "[1, inf)")
        check_fields(self, classes="[0, inf)", statistics="[0, inf)", pixel_std="(0, inf)", **one)
        family.divisible(self, "width", 4)
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "size", self.encoder.grid, "encoder.grid")
        if self.statistics not in (0, 1, self.encoder.grid):
            raise UserError(f"RAE.statistics {self.statistics}; allowed: 0, 1 and encoder.grid, {self.encoder.grid}")
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise UserError(f"RAE.{name} {getattr(self, name)} must be one number, or one for each channel")

    @property
    def patch(self) -> int:
        """Side of the square that a token is decoded to, pixels."""
        return self.size // int(self.encoder.grid)

    @property
    def latent_channels(self) -> int:
        """Numbers of a token."""
        return int(self.encoder.dim)

    def build(self) -> nn.Module:
        """Return the network, its decoder freshly initialised."""
        return RAENet(self)


class RAENet(Network):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it; pictures within are in [0, 1]."""

    gaussian = False
    image_range = RAE.image_range
    latent_layer = None
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, spec: RAE) -> None:
        super().__init__(spec)
        self.channels, self.stride, self.grid = spec.latent_channels, spec.patch, int(spec.encoder.grid)
        pixels = spec.patch**2 * spec.channels
        self.decoder = ViTDecoder(self.channels, self.grid, pixels, spec.width, spec.depth, spec.heads, spec.hidden)
        self.encoder = spec.encoder.build() if hasattr(spec.encoder, "build") else None
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).reshape(-1, 1, 1), persistent=False)
        if spec.statistics:
            shape = (self.channels, spec.statistics, spec.statistics)
            self.register_buffer("latent_mean", torch.zeros(shape))
            self.register_buffer("latent_std", torch.ones(shape))

    @property
    def statistics(self) -> Statistics | None:
        """Mean and deviation of the latents, where they are stored."""
        if not self.spec.statistics:
            return None
        return Statistics(self.get_buffer("latent_mean"), self.get_buffer("latent_std"))

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        if images.shape[2:] != (self.spec.size, self.spec.size):  # which the encoder would resize, and decode not back
            side, given = self.spec.size, " x ".join(map(str, images.shape[2:]))
            raise UserError(
                f"RAE's pictures are {side} x {side}, these {given}: resize them, as gen encode --size {side}"
            )
        encoder = _loaded(self.spec.encoder, str(images.device)) if self.encoder is None else self.encoder
        with torch.no_grad():
            tokens: Tensor = encoder(images).tokens  # [B, grid^2, C]
        return Posterior(tokens.mT.unflatten(2, (self.grid, self.grid)).to(images.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoded(latents, None)

    def decoded(self, z: Tensor, tap: Tap | None) -> Tensor:
        check_latents(self, z)
        if z.shape[2:] != (self.grid, self.grid):
            z = F.interpolate(z, (self.grid, self.grid), mode="bilinear", align_corners=False)
        side, shape = self.spec.patch, (self.grid, self.grid)
        patches = self.decoder(z.flatten(2).mT, tap)  # [B, N, patch^2 channels]
        parts = patches.unflatten(2, (side, side, -1)).unflatten(1, shape)  # [B, h, w, p, q, c]
        images = torch.einsum("bhwpqc->bchpwq", parts).flatten(4).flatten(2, 3)
        return (images * self.pixel_std + self.pixel_mean) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's prediction."""
        prediction: Any = self.decoder.decoder_pred
        weight: nn.Parameter = prediction.weight
        return weight

    def train(self, mode: bool = True) -> RAENet:
        """Set the decoder's mode; the encoder stays frozen."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self


@functools.cache
def _loaded(encoder: Encoder, device: str) -> nn.Module:
    """Load a frozen encoder once for each device."""
    return encoder.load(device)
