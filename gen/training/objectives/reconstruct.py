"""Reconstruction: the loss of an autoencoder with a Gaussian latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.tap import FeatureRecorder
from gen.training.objectives import Batch, Objective, Roles, Step

__all__ = ["Reconstruction", "MOMENTS", "kl_divergence"]  # noqa: RUF022 - the plug-in comes first

MOMENTS = "moments"  # the site of an autoencoder at which it has mean and log variance, [B, 2 C, h, w]


@dataclass(frozen=True)
class Reconstruction(Objective):
    """(sum |x - decode(z)| + kl times KL(q(z | x) | N(0, 1))) / numbers of x, z drawn from q (Kingma & Welling 2013).

    Sums are over each picture: the ratio of the two is that of LDM (Rombach et al. 2022), without its LPIPS and its
    discriminator, so that fine texture comes out smooth.

    Attributes:
        distance: "l1", or "l2" for the squares.
        kl: weight of the divergence; LDM's 1e-6 by default.
    """

    distance: Literal["l1", "l2"] = "l1"
    kl: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, kl="[0, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        if not hasattr(net, "latent_shape"):
            raise UserError(f"Reconstruction trains an autoencoder, such as kl, and this is a {type(net).__name__}")
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        noise = batch.noise.normal("posterior", self._net(roles).latent_shape(batch.x))
        loss, logs = self._loss(roles, batch, noise)
        yield "net", loss, logs

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the loss of the mean of each latent."""
        return self._loss(roles, batch, None)[0]

    def _loss(self, roles: Roles, batch: Batch, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        recorder, x = FeatureRecorder((MOMENTS,)), batch.x
        cond = {} if noise is None else {"posterior": noise.to(x)}
        out = roles["net"].net(x, torch.zeros(len(x), device=x.device), cond, tap=recorder)
        error = out - x  # in x's precision, whatever autocast computed in
        error = (error.abs() if self.distance == "l1" else error.square()).flatten(1).sum(1)
        divergence = kl_divergence(recorder.features[MOMENTS].to(x))
        loss = (error + self.kl * divergence).mean() / x[0].numel()
        return loss, {"reconstruction": error.mean() / x[0].numel(), "kl": divergence.mean()}

    def _net(self, roles: Roles) -> Any:
        return unwrap(roles["net"].net)


def kl_divergence(moments: Tensor) -> Tensor:
    """Return KL(N(mean, exp(logvar)) | N(0, 1)) of each row, summed over its numbers, [B].

    Args:
        moments: mean, then log variance, in equal halves of the channels, [B, 2 C, ...].
    """
    mean, logvar = moments.chunk(2, 1)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
