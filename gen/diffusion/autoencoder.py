"""The contract of an autoencoder: how gen encode, training in latents, sampling and its own training see one."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gen.diffusion.net import Net

__all__ = ["CODEBOOK", "LATENT", "MOMENTS", "Autoencoder", "AutoencoderNet", "Posterior", "Statistics"]

MOMENTS = "moments"  # site of a network that is trained: mean and log variance [B, 2 C, h, w]; of points, themselves
LATENT = "latent"  # site: the latent that is decoded, drawn where there is a distribution, [B, C, h, w]
CODEBOOK = "codebook"  # site, where there is a codebook: its loss and the commitment's of each image, [B]


class Posterior(NamedTuple):
    """Latents of images: a normal distribution for each, or points.

    Attributes:
        mean: [B, C, h, w].
        logvar: logarithm of the variance, [B, C, h, w]; None for points.
    """

    mean: Tensor
    logvar: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """Return a draw; points stay as they are.

        Args:
            noise: standard normal, [B, C, h, w].
        """
        return self.mean if self.logvar is None else self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)

    @property
    def moments(self) -> Tensor:
        """Mean and log variance, [B, 2 C, h, w]; of points, themselves."""
        return self.mean if self.logvar is None else torch.cat([self.mean, self.logvar], 1)

    @classmethod
    def of(cls, moments: Tensor, gaussian: bool) -> Posterior:
        """Return the posterior of moments.

        Args:
            moments: as the property gives them.
            gaussian: whether they are mean and log variance.
        """
        return cls(*moments.chunk(2, 1)) if gaussian else cls(moments)


class Statistics(NamedTuple):
    """Mean and deviation of latents that an autoencoder states: a denoiser learns (latent - mean) / std.

    Attributes:
        mean, std: float32 [C, 1, 1], or [C, h, w] for each position.
    """

    mean: Tensor
    std: Tensor


class Autoencoder(Protocol):
    """A loaded autoencoder: an nn.Module between images in [-1, 1] and latents as it scales them itself, in float32.

    A spec of gen.models.autoencoders has load(device) -> this, frozen and in eval mode, or build() -> AutoencoderNet,
    or both. It may have identity() -> dict of JSON values, by which latents know it: {"class", "config", "sha256"} of
    the weights; else the class, its fields and the loaded weights stand for it. Nothing is ever downloaded.

    Required are encode and decode. Optional members, with the default of their absence:
        image_range: lowest and highest value of the images inside; (-1, 1). A network of another range converts at its
            own edge: its images here are in [-1, 1] too. Latents keep it, so that those of two ranges do not mix.
        image_channels: 3.
        channels: of the latents; None, unknown.
        stride: side of an image over the side of its latent; None, unknown. Images of other multiples are refused.
        statistics: None for latents that come as a denoiser takes them; `gen encode` keeps them for
            --data.standardise autoencoder.
    """

    image_range: tuple[float, float]
    image_channels: int
    channels: int | None
    stride: int | None
    statistics: Statistics | None

    def encode(self, images: Tensor) -> Posterior:
        """Return the latents of images.

        Args:
            images: [B, image_channels, H, W] in [-1, 1].
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, image_channels, H, W], about [-1, 1] and not clamped.

        Args:
            latents: [B, channels, h, w].
        """
        ...


class AutoencoderNet(Autoencoder, Net, Protocol):
    """An autoencoder that is trained here: also a network, of images to their reconstructions at t = 0.

    forward(x, 0, cond, tap=...) draws the latent with cond["posterior"], standard normal of latent_shape(x), and takes
    the mean without; it adds cond["perturbation"], of the same shape, to the latent before it is decoded. Its sites are
    MOMENTS, LATENT and, with a codebook, CODEBOOK.

    Attributes:
        gaussian: whether encode gives a distribution, to whose divergence a loss may hold it.
        last_layer: the decoder's last weight, at which losses of images are weighed against each other.
        latent_layer: the encoder's last weight, at which losses of latents are; None for a frozen encoder.
    """

    gaussian: bool
    last_layer: nn.Parameter
    latent_layer: nn.Parameter | None
    spec: Any

    def latent_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return (C, h, w) of the latent of each of some images.

        Args:
            x: images [B, C, H, W].
        """
        ...
