"""A tokenizer whose latents are held to the features of a vision foundation model (VA-VAE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.alignment import Encoder, adaptive_weight, tokens_of, vf_loss
from gen.diffusion.autoencoder import LATENT
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import sides
from gen.training.objectives import Batch, Roles
from gen.training.objectives.repa import loaded
from gen.training.objectives.tokenizer import Tokenizer

__all__ = ["VF"]


@dataclass(frozen=True)
class VF(Tokenizer):
    """Tokenizer + vf_weight lambda vf_loss(W z, encoder(x)), z the drawn latents (VA-VAE, Yao et al. 2025).

    W, a linear map without bias, is a role of its own. lambda = |gradient of the loss of pictures| / (|gradient of the
    vf loss| + vf_eps), at most vf_most, at the encoder's last weight, in each micro-batch. Both terms see W z, as in
    the public code; equation 3 of the paper has z in the second. Losses are for each number of x, and the code's are
    sums: its bound is vf_most = 1e8 / numbers.

    Attributes:
        encoder: see gen.models.encoders; its grid is that of the latents. VA-VAE's DINOv2 sees pixels in [-1, 1].
        vf_weight: 0.1 as published; 0.5 in the first 100 epochs of the released model.
        vf_eps: see above; 1e-4 as published.
        vf_most: see above; 1e8 as published.
        cos_margin: of the cosine of each token; 0.5 as published.
        distance_margin: of the cosines of pairs of tokens; 0.25 as published.
    """

    encoder: Any = part("models.encoders", kinds=(Encoder,), default="digits_cnn")
    vf_weight: float = 0.1
    vf_eps: float = 1e-4
    vf_most: float = 1e8
    cos_margin: float = 0.5
    distance_margin: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self, vf_weight="[0, inf)", vf_eps="(0, inf)", vf_most="(0, inf)", cos_margin="[0, 2]",
            distance_margin="[0, 2]",
        )  # fmt: skip

    @property
    def sites(self) -> tuple[str, ...]:
        return (LATENT,)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles, coder = super().roles(net, teacher), net
        self._check(coder)
        projection = nn.Linear(int(coder.channels), self.encoder.dim, bias=False)  # type: ignore[arg-type]
        return {**roles, "projection": projection}

    def _check(self, coder: Any) -> None:
        """Raise UserError for an autoencoder without an encoder to train, or of another grid than the features'."""
        if coder.latent_layer is None:
            raise UserError(f"VF trains an encoder, and that of {type(coder).__name__} is frozen: take tokenizer")
        grid = tuple(side // coder.stride for side in sides(coder.spec))
        if grid != (self.encoder.grid, self.encoder.grid):
            raise UserError(
                f"VF: latents are {grid[0]} x {grid[1]}, and the encoder has a grid of {self.encoder.grid} x "
                f"{self.encoder.grid}: choose another encoder.grid"
            )

    def further(
        self, roles: Roles, batch: Batch, images: Tensor, features: dict[str, Tensor]
    ) -> tuple[str | tuple[str, ...], Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            seen = loaded(self.encoder, str(batch.x.device))(batch.x).tokens
        z = roles["projection"].net(tokens_of(features[LATENT]))
        loss = vf_loss(z, seen, self.cos_margin, self.distance_margin)
        weight = adaptive_weight(images, loss, self._net(roles).latent_layer, self.vf_most, self.vf_eps)
        logs = {"vf": loss, "vf_weight": weight}
        return ("net", "projection"), self.vf_weight * weight * loss, logs
