"""The base of autoencoders that are trained here, and the checks that all have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError
from gen.diffusion.autoencoder import LATENT, MOMENTS, Posterior, Statistics
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site

__all__ = ["Network", "check_images", "check_latents", "of_diffusers", "stated"]


class Network(nn.Module):
    """Base of networks that keep the contract gen.diffusion.autoencoder.AutoencoderNet.

    A subclass has encode, decode, channels, stride, last_layer and latent_layer, and a spec with `channels`, those of
    the images.
    """

    image_range = (-1.0, 1.0)
    gaussian = True
    channels: int
    stride: int

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    @property
    def statistics(self) -> Statistics | None:
        """Mean and deviation of latents that the network states; None for none."""
        return None

    @property
    def image_channels(self) -> int:
        return int(self.spec.channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if bool((t != 0).any()):
            raise UserError("an autoencoder is trained on clean pictures, and draws none: give it as --autoencoder")
        moments = call_site(tap, MOMENTS, lambda x: self.encode(x).moments, x)
        z = call_site(tap, LATENT, lambda moments: self.drawn(moments, cond, tap), moments)
        return self.decoded(self.perturbed(z, cond), tap)

    def encode(self, images: Tensor) -> Posterior:
        """Return the latents of images."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""
        raise NotImplementedError

    def drawn(self, moments: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        """Return the latents that are decoded: drawn by cond["posterior"], the means without it."""
        posterior, noise = Posterior.of(moments, self.gaussian), cond.get("posterior")
        return posterior.mean if noise is None else posterior.sample(noise)

    def perturbed(self, z: Tensor, cond: Cond) -> Tensor:
        """Return latents with cond["perturbation"] added, if it is there."""
        return z + cond["perturbation"].to(z) if "perturbation" in cond else z

    def decoded(self, z: Tensor, tap: Tap | None) -> Tensor:
        """Return the images of latents, within a training that looks at sites of the decoder."""
        return self.decode(z)

    def latent_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the latent of each of some pictures."""
        check_images(self, x)
        return (self.channels, x.shape[2] // self.stride, x.shape[3] // self.stride)

    def null(self, cond: Cond) -> Cond:
        return cond


def check_images(coder: Any, x: Tensor) -> None:
    """Raise UserError for pictures of other channels than an autoencoder's, or of sides that its stride divides not.

    Args:
        coder: an Autoencoder.
        x: pictures [B, C, H, W].
    """
    if x.ndim != 4 or x.shape[1] != coder.image_channels:
        raise UserError(
            f"this autoencoder takes pictures of {coder.image_channels} channels, these are {list(x.shape)}"
        )
    if coder.stride is not None and any(side % coder.stride for side in x.shape[2:]):
        raise UserError(f"this autoencoder takes sides that are multiples of {coder.stride}, these are {list(x.shape)}")


def check_latents(coder: Any, z: Tensor) -> None:
    """Raise UserError for latents of another number of channels than an autoencoder's.

    Args:
        coder: an Autoencoder.
        z: latents [B, C, h, w].
    """
    if z.ndim != 4 or coder.channels not in (None, z.shape[1]):
        raise UserError(f"latents are {list(z.shape)}; this autoencoder's have {coder.channels} channels")


def stated(scale: float, shift: float = 0.0) -> Statistics | None:
    """Return the statistics of latents that a denoiser learns as (z - shift) * scale; None for z itself.

    Args:
        scale, shift: of all channels.
    """
    if (scale, shift) == (1.0, 0.0):
        return None
    return Statistics(torch.full((1, 1, 1), shift), torch.full((1, 1, 1), 1 / scale))


def of_diffusers(name: str, **config: object) -> Any:
    """Return a network of diffusers, freshly initialised; MissingDependency without the package.

    Args:
        name: of the class.
        **config: its arguments.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependency(
            f"autoencoders need diffusers ({error}): pip install 'gen-diffusion[diffusers]'"
        ) from None
    return getattr(diffusers, name)(**config)
