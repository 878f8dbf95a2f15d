"""REG: the encoder's class token is noised and denoised with the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.alignment import Features
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.tap import Tap
from gen.training.objectives import Batch
from gen.training.objectives.repa import REPA

__all__ = ["REG"]


@dataclass(frozen=True)
class REG(REPA):
    """Denoising of the image, plus cls_weight times that of the class token, plus REPA on it and the patches.

    Wu et al. 2025, "Representation Entanglement for Generation". The network is gen.models.reg with the encoder's dim
    as its cls_dim; the class token has the image's times and noise of its own. A trained network is sampled by any
    solver, image and class token as one state.

    Attributes:
        cls_weight: of the class token's loss; default the paper's.
    """

    cls_weight: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, cls_weight="[0, inf)")
        if not getattr(self.encoder, "cls", True):
            raise UserError("REG needs a class token, and encoder.cls is False: store one, as the first of the tokens")

    def check_net(self, net: nn.Module) -> None:
        spec: Any = net.spec
        if getattr(spec, "cls_dim", None) != self.encoder.dim:
            raise UserError(
                f"REG trains the model reg with cls_dim = {self.encoder.dim}, the encoder's dim; "
                f"this is a {type(spec).__name__} with cls_dim = {getattr(spec, 'cls_dim', None)}"
            )

    def check_grid(self, count: int) -> None:
        super().check_grid(count - 1)  # the class token is in front of the patches

    def encode(self, batch: Batch) -> tuple[Features, Batch]:
        """Return class token and patches as tokens, and the batch with x the joint state [B, C H W + dim]."""
        features, batch = super().encode(batch)
        if features.cls is None:
            raise UserError("REG needs a class token, and this encoder has none")
        joint = torch.cat([batch.x.flatten(1), features.cls.to(batch.x)], 1)
        tokens = torch.cat([features.cls[:, None], features.tokens], 1)
        return Features(tokens, features.cls), replace(batch, x=joint)

    def losses(self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the weighted loss of each sample, [B]: the image's plus cls_weight times the class token's."""
        dim, x = self.encoder.dim, batch.x
        sizes = {"eps": x.shape[1] - dim, "eps.cls": dim}
        eps = torch.cat([batch.noise.normal(name, (n,)) for name, n in sizes.items()], 1).to(x)
        out = f.output(f.path.mix(x, eps, t), t, cond, tap=tap)
        error = (out - f.parameterisation.target(f.path, x, eps, t)).float() ** 2
        both = error[:, :-dim].mean(1) + self.cls_weight * error[:, -dim:].mean(1)
        weight = self.weighting.weight(f.path, f.parameterisation, t)
        return both * weight.to(both)
