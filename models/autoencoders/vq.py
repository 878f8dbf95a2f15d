"""The autoencoder of LDM with a codebook, which diffusers reads as VQModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.diffusion.autoencoder import CODEBOOK, Posterior, Statistics
from gen.diffusion.tap import Tap
from gen.models.autoencoders.lib.ldm import LEVELS, PUBLISHED, LDMNetwork, check_levels, ldm_config
from gen.models.autoencoders.lib.network import check_images, check_latents, of_diffusers, stated
from gen.models.layers import family

__all__ = ["VQ"]


@dataclass(frozen=True)
class VQ(family.Family):
    """A convolutional network whose latents, when they are decoded, become the nearest of some vectors.

    Latents are those before the codebook, as LDM and ResShift diffuse them. Presets: "f4" (LDM's and ResShift's,
    55,322,782 parameters) and "digits".

    Attributes:
        size: height and width of the pictures; one number for squares.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        latent_channels: of the latents, numbers of a vector; 3 as published.
        vectors: of the codebook; 8192 there.
        codebook, commitment: weights of |sg(z) - e|^2 and |z - sg(e)|^2, means over numbers (van den Oord et al. 2017,
            equation 3, with their 0.25). LDM's code has them the other way round: 0.25 and 1.
        width, multipliers, blocks, groups, attention, attention_levels, scale: see gen.models.autoencoders.kl.
    """

    presets: ClassVar[family.Presets] = {
        "f4": {**PUBLISHED, **LEVELS["f4"], "latent_channels": 3, "vectors": 8192},
        "digits": {
            "size": 8, "channels": 1, "classes": 10, "latent_channels": 2, "vectors": 64, "width": 16,
            "multipliers": (1, 2), "groups": 4,
        },
    }  # fmt: skip

    size: int | tuple[int, int] = 32
    channels: int = 3
    classes: int = 0
    latent_channels: int = 3
    vectors: int = 256
    codebook: float = 1.0
    commitment: float = 0.25
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    groups: int = 8
    attention: bool = True
    attention_levels: tuple[int, ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_levels(self)
        check_fields(self, vectors="[1, inf)", codebook="[0, inf)", commitment="[0, inf)")

    def build(self) -> nn.Module:
        """Return the network, freshly initialised."""
        config = {**ldm_config(self), "num_vq_embeddings": self.vectors, "scaling_factor": self.scale}
        return VQNet(self, of_diffusers("VQModel", **config))


class VQNet(LDMNetwork):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it; gradients pass the codebook straight through."""

    gaussian = False

    @property
    def statistics(self) -> Statistics | None:
        """Those of the scale, unless it changes nothing."""
        return stated(self.spec.scale)

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        return Posterior(self.net.encode(images).latents)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoded(latents, None)

    def decoded(self, z: Tensor, tap: Tap | None) -> Tensor:
        check_latents(self, z)
        nearest = self.quantised(z)
        if tap is not None:
            tap(CODEBOOK, lambda z: self.codebook_loss(z, nearest), z)
        images: Tensor = self.net.decode(z + (nearest - z).detach(), force_not_quantize=True).sample
        return images

    def quantised(self, z: Tensor) -> Tensor:
        """Return the nearest vector of the codebook for each position, [B, C, h, w]."""
        vectors = self.net.quantize.embedding.weight
        flat = z.movedim(1, -1)  # [B, h, w, C]
        which = torch.cdist(flat.reshape(-1, flat.shape[-1]), vectors).argmin(1)
        nearest: Tensor = vectors[which].reshape(flat.shape)
        return nearest.movedim(-1, 1).contiguous()

    def codebook_loss(self, z: Tensor, nearest: Tensor) -> Tensor:
        """Return the codebook's loss and the commitment's of each image, [B]."""
        own = (z.detach() - nearest).square().flatten(1).mean(1)
        commitment = (z - nearest.detach()).square().flatten(1).mean(1)
        return self.spec.codebook * own + self.spec.commitment * commitment
