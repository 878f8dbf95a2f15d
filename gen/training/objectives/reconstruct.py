"""Reconstruction: the loss of an autoencoder, with a Gaussian latent, points or a codebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.autoencoder import CODEBOOK, MOMENTS
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.tap import FeatureRecorder
from gen.training.objectives import Batch, Objective, Roles, Step

__all__ = ["Reconstruction", "kl_divergence"]

KL = 1e-6  # LDM's weight


@dataclass(frozen=True)
class Reconstruction(Objective):
    """(sum |x - decode(z)| + kl times KL(q(z | x) | N(0, 1))) / numbers of x, z drawn from q (Kingma & Welling 2013).

    Sums are over each picture: the ratio of the two is that of LDM (Rombach et al. 2022), without its LPIPS and its
    discriminator, so that fine texture comes out smooth. An autoencoder with a codebook adds its own loss, once for
    each number of x: van den Oord et al. 2017, equation 3.

    Attributes:
        distance: "l1", or "l2" for the squares.
        kl: weight of the divergence; None for LDM's 1e-6 where latents have a distribution. Points have none.
    """

    distance: Literal["l1", "l2"] = "l1"
    kl: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, kl="[0, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        if not hasattr(net, "latent_shape"):
            raise UserError(f"Reconstruction trains an autoencoder, such as kl, and this is a {type(net).__name__}")
        if self.kl is not None and not getattr(net, "gaussian", True):
            raise UserError(f"Reconstruction: kl = {self.kl}, and latents of {type(net).__name__} are points")
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        noise = batch.noise.normal("posterior", self._net(roles).latent_shape(batch.x))
        loss, logs = self._loss(roles, batch, noise)
        yield "net", loss, logs

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the loss of the mean of each latent."""
        return self._loss(roles, batch, None)[0]

    def _loss(self, roles: Roles, batch: Batch, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        out, features = self.reconstruct(roles, batch, {} if noise is None else {"posterior": noise.to(batch.x)})
        images, seen = self.image_loss(out, batch.x)
        latents, held = self.latent_loss(roles, features, batch.x)
        return images + latents, {**seen, **held}

    def reconstruct(
        self, roles: Roles, batch: Batch, cond: dict[str, Tensor], sites: tuple[str, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the pictures of the batch's latents, and the values at MOMENTS, CODEBOOK and other sites.

        Args:
            roles, batch: as of the call.
            cond: of the network: "posterior" and "perturbation".
            sites: others of gen.diffusion.autoencoder.
        """
        recorder, x = FeatureRecorder((MOMENTS, CODEBOOK, *sites)), batch.x
        out = roles["net"].net(x, torch.zeros(len(x), device=x.device), cond, tap=recorder)
        return out.to(x), recorder.features  # in x's precision, whatever autocast computed in

    def image_loss(self, out: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of reconstructions, for each number of x, and logs.

        Args:
            out, x: reconstructions and pictures [B, C, H, W].
        """
        error = (out - x).abs() if self.distance == "l1" else (out - x).square()
        loss = error.flatten(1).sum(1).mean() / x[0].numel()
        return loss, {"reconstruction": loss}

    def latent_loss(self, roles: Roles, features: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted divergence or the codebook's loss, for each number of x, and logs.

        Args:
            roles: as of the call.
            features: as `reconstruct` returns them.
            x: pictures [B, C, H, W].
        """
        loss, logs = x.new_zeros(()), dict[str, Tensor]()
        if getattr(self._net(roles), "gaussian", True):
            divergence = kl_divergence(features[MOMENTS].to(x)).mean()
            weight = KL if self.kl is None else self.kl
            loss, logs = loss + weight * divergence / x[0].numel(), {"kl": divergence}
        if CODEBOOK in features:
            codebook = features[CODEBOOK].mean()
            loss, logs = loss + codebook, {**logs, "codebook": codebook}
        return loss, logs

    def _net(self, roles: Roles) -> Any:
        return unwrap(roles["net"].net)


def kl_divergence(moments: Tensor) -> Tensor:
    """Return KL(N(mean, exp(logvar)) | N(0, 1)) of each row, summed over its numbers, [B].

    Args:
        moments: mean, then log variance, in equal halves of the channels, [B, 2 C, ...].
    """
    mean, logvar = moments.chunk(2, 1)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
