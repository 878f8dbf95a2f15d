"""The convolutional autoencoder of LDM and VA-VAE, with a Gaussian latent, which diffusers reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gen.diffusion.autoencoder import Posterior, Statistics
from gen.models.autoencoders.lib.ldm import LEVELS, PUBLISHED, LDMNetwork, check_levels, ldm_config
from gen.models.autoencoders.lib.network import check_images, check_latents, of_diffusers, stated
from gen.models.layers import family

__all__ = ["KL"]


@dataclass(frozen=True)
class KL(family.Family):
    """The network of Stable Diffusion's autoencoder (Rombach et al. 2022), diffusers' AutoencoderKL, of any width.

    Latents are smaller than pictures by 2^(len(multipliers) - 1). A run's folder is an autoencoder's: see
    gen.models.autoencoders.trained. Presets: "f4d3", "f8d4" (Stable Diffusion's, 83,653,863 parameters), "f16d16",
    "f16d32" (VA-VAE's, 69,836,067), "f16d64", "f32d64", and "digits".

    Attributes:
        size: height and width of the pictures; one number for squares.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        latent_channels: of the latents; 4 in Stable Diffusion.
        width: channels of the first level; 128 there.
        multipliers: of the width, by level; (1, 2, 4, 4) there.
        blocks: of each level, and one more in the decoder's; 2 there.
        groups: of group norms; 32 there.
        attention: whether the middle, between encoder and latent and after it, has an attention block.
        attention_levels: levels, from 0, whose blocks are each followed by attention; the last of VA-VAE's.
        quant_conv: whether 1 x 1 convolutions lie on both sides of the latent; not in Stable Diffusion 3's and FLUX's.
        scale, shift: that the latents are stated to need, (z - shift) * scale; diffusers' scaling and shift factor.
    """

    presets: ClassVar[family.Presets] = {
        **{
            f"{level}d{numbers}": {**PUBLISHED, **LEVELS[level], "latent_channels": numbers}
            for level, numbers in (("f4", 3), ("f8", 4), ("f16", 16), ("f16", 32), ("f16", 64), ("f32", 64))
        },
        "digits": {
            "size": 8, "channels": 1, "classes": 10, "latent_channels": 2, "width": 16, "multipliers": (1, 2),
            "groups": 4,
        },
    }  # fmt: skip

    size: int | tuple[int, int] = 32
    channels: int = 3
    classes: int = 0
    latent_channels: int = 4
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    groups: int = 8
    attention: bool = True
    attention_levels: tuple[int, ...] = ()
    quant_conv: bool = True
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_levels(self)

    def build(self) -> nn.Module:
        """Return the network, freshly initialised."""
        joined = {"use_quant_conv": self.quant_conv, "use_post_quant_conv": self.quant_conv}
        scaling = {"scaling_factor": self.scale, "shift_factor": self.shift or None}
        return KLNet(self, of_diffusers("AutoencoderKL", **ldm_config(self), **joined, **scaling))


class KLNet(LDMNetwork):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it."""

    @property
    def statistics(self) -> Statistics | None:
        """Those of scale and shift, unless they change nothing."""
        return stated(self.spec.scale, self.spec.shift)

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        normal = self.net.encode(images).latent_dist
        return Posterior(normal.mean, normal.logvar)

    def decode(self, latents: Tensor) -> Tensor:
        check_latents(self, latents)
        images: Tensor = self.net.decode(latents).sample
        return images
