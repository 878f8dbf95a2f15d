"""An autoencoder to be trained here, which diffusers then reads: `gen train autoencoder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.autoencoder import Posterior
from gen.models.autoencoders.lib.network import Network, check_images, check_latents, of_diffusers

__all__ = ["KL"]


@dataclass(frozen=True)
class KL:
    """The network of Stable Diffusion's autoencoder (Rombach et al. 2022), diffusers' AutoencoderKL, of any width.

    Latents are smaller than pictures by 2^(len(multipliers) - 1). A run's folder is an autoencoder's: see
    gen.models.autoencoders.trained.

    Attributes:
        size: height and width of the pictures; one number for squares.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        latent_channels: of the latents; 4 in Stable Diffusion.
        width: channels of the first level; 128 there.
        multipliers: of the width, by level; (1, 2, 4, 4) there.
        blocks: of each level; 2 there.
        groups: of group norms; 32 there.
        attention: whether the lowest level has an attention block.
    """

    size: int | tuple[int, int] = 32
    channels: int = 3
    classes: int = 0
    latent_channels: int = 4
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    groups: int = 8
    attention: bool = True

    def __post_init__(self) -> None:
        one = dict.fromkeys(("size", "channels", "latent_channels", "width", "multipliers", "blocks"), "[1, inf)")
        check_fields(self, classes="[0, inf)", groups="[1, width]", **one)
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        factor = 2 ** (len(self.multipliers) - 1)
        if self.width % self.groups or any(side % factor for side in sides):
            raise UserError(
                f"KL: width = {self.width} must be a multiple of groups = {self.groups}, and size = {self.size} of "
                f"{factor}, by which {len(self.multipliers)} multipliers make latents smaller"
            )

    def build(self) -> nn.Module:
        """Return the network, freshly initialised."""
        levels = len(self.multipliers)
        net = of_diffusers(
            "AutoencoderKL",
            in_channels=self.channels,
            out_channels=self.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(self.width * factor for factor in self.multipliers),
            layers_per_block=self.blocks,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            sample_size=self.size if isinstance(self.size, int) else max(self.size),
            mid_block_add_attention=self.attention,
        )
        return KLNet(self, net)


class KLNet(Network):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it."""

    def __init__(self, spec: KL, net: Any) -> None:
        super().__init__(spec)
        self.net = net
        self.channels, self.stride = spec.latent_channels, 2 ** (len(spec.multipliers) - 1)

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        normal = self.net.encode(images).latent_dist
        return Posterior(normal.mean, normal.logvar)

    def decode(self, latents: Tensor) -> Tensor:
        check_latents(self, latents)
        images: Tensor = self.net.decode(latents).sample
        return images

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        weight: nn.Parameter = self.net.decoder.conv_out.weight
        return weight

    @property
    def latent_layer(self) -> nn.Parameter:
        """The weight of the encoder's last convolution."""
        weight: nn.Parameter = self.net.encoder.conv_out.weight
        return weight
