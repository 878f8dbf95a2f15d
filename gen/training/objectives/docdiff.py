"""DocDiff: a coarse network and the diffusion of what it leaves, both with an eye on edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.net import unwrap
from gen.diffusion.tap import Tap
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.restore import Restoration, residuals

__all__ = ["DocDiff", "laplacian"]


@dataclass(frozen=True)
class DocDiff(Restoration):
    """|r^ - r|^2 + edges |L (r^ - r)|^2 + coarse (|c - x|^2 + smooth |c - x - L (c - x)|^2), means (Yang et al. 2023).

    c is the base of the model `beside` with a coarse network, r = x - c what its denoiser predicts as x0, on the path
    ddpm with 100 steps and betas from 1e-5 to 0.2 in the paper, L the Laplacian of eight neighbours. Gradients reach
    the coarse network through r and through the last two terms, but not through the condition.

    Attributes:
        edges: weight of the residual's Laplacian; default the paper's.
        coarse: weight of the coarse network's own errors; the public code has 50 / 100 for 100 steps.
        smooth: weight, among them, of what is left of the Laplacian; default the paper's.
    """

    edges: float = 2.0
    coarse: float = 0.5
    smooth: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, edges="[0, inf)", coarse="[0, inf)", smooth="[0, inf)")

    def check_net(self, net: nn.Module) -> None:
        super().check_net(net)
        spec: Any = unwrap(net).spec
        if spec.coarse is None:
            raise UserError("DocDiff trains a coarse network, too: set model.coarse, such as to the model unet")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, batch = roles["net"], self.degraded(batch)
        shifted, base = residuals(f, batch)
        t, cond = self.draw(f, shifted)
        fine = self.losses(f, replace(shifted, x=batch.x - base), cond, t).mean()
        coarse = self.coarse_loss(base - batch.x)
        yield "net", fine + self.coarse * coarse, {"fine": fine, "coarse": coarse}

    def losses(self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the weighted loss of each sample's residual, [B], at times t [B]."""
        x = f.path.mix(batch.x, batch.normal("eps"), t)
        error = (f(x, t, cond, tap=tap).x0 - batch.x).float()
        square = error.square() + self.edges * laplacian(error).square()
        return square.flatten(1).mean(1) * self.weighting.weight(f.path, f.parameterisation, t).to(square)

    def coarse_loss(self, error: Tensor) -> Tensor:
        """Return the loss of the coarse network, 0-d, of c - x [B, C, H, W]."""
        error = error.float()
        return error.square().mean() + self.smooth * (error - laplacian(error)).square().mean()


def laplacian(x: Tensor) -> Tensor:
    """Return 8 times each pixel less its eight neighbours, zero outside, for each channel of [B, C, H, W].

    Args:
        x: pictures.
    """
    kernel = -torch.ones(3, 3, dtype=x.dtype, device=x.device)
    kernel[1, 1] = 8
    return conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
