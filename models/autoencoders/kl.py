"""An autoencoder to be trained here, which diffusers then reads: `gen train autoencoder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap
from gen.training.objectives.reconstruct import MOMENTS

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
        try:
            import diffusers
        except ImportError as error:
            raise MissingDependency(
                f"autoencoders need diffusers ({error}): pip install 'gen-diffusion[diffusers]'"
            ) from None
        levels, owner = len(self.multipliers), getattr(diffusers, "AutoencoderKL")  # noqa: B009 - it is untyped
        net = owner(
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
        return Reconstructor(self, net)


class Reconstructor(nn.Module):
    """Pictures [B, C, H, W] to what is decoded of their latents; those are drawn by cond["posterior"], else means.

    The site "moments" has mean and log variance, [B, 2 C, h, w].
    """

    def __init__(self, spec: KL, net: Any) -> None:
        super().__init__()
        self.spec, self.net = spec, net

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if bool((t != 0).any()):
            raise UserError("an autoencoder is trained on clean pictures, and draws none: give it as --autoencoder")
        moments = self.moments(x) if tap is None else tap(MOMENTS, self.moments, x)
        mean, logvar = moments.chunk(2, 1)
        noise = cond.get("posterior")
        out: Tensor = self.net.decode(mean if noise is None else mean + (0.5 * logvar).exp() * noise.to(mean)).sample
        return out

    def moments(self, x: Tensor) -> Tensor:
        """Return mean and log variance, [B, 2 C, h, w]."""
        normal = self.net.encode(x).latent_dist
        return torch.cat([normal.mean, normal.logvar], 1)

    def latent_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the latent of each of some pictures."""
        factor = 2 ** (len(self.spec.multipliers) - 1)
        return (self.spec.latent_channels, x.shape[2] // factor, x.shape[3] // factor)

    def null(self, cond: Cond) -> Cond:
        return cond
