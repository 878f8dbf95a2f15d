"""Denoising: the regression that trains diffusion and flow models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.tap import Tap
from gen.diffusion.times import Uniform
from gen.diffusion.weighting import UniformWeighting
from gen.training.objectives import Batch, Roles, Step

__all__ = ["Denoising", "check_state", "drop_condition"]


@dataclass(frozen=True)
class Denoising:
    """E weight(t) |net(x_t, t) - target|^2, the mean over elements, on any path and parameterisation.

    class_dropout: the share of samples whose condition is replaced by the null one, for guidance (Ho & Salimans 2022).
    """

    times: Any = part("diffusion.times", default=Uniform())
    weighting: Any = part("diffusion.weighting", default=UniformWeighting())
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout <= 1:
            raise UserError(f"Denoising: class_dropout = {self.class_dropout}; it must be in [0, 1]")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        return {"net": net}

    def check_net(self, net: nn.Module) -> None:
        """Raises UserError for a network that this objective cannot train."""
        check_state(net, type(self).__name__)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t, cond = self.draw(f, batch)
        yield "net", self.losses(f, batch, cond, t).mean(), {}

    def draw(self, f: Denoiser, batch: Batch) -> tuple[Tensor, Cond]:
        """Times [B] and the condition, some of it dropped, that this step trains."""
        t = self.times.at(batch.noise.uniform("t"), f.path)
        return t.to(batch.x.device), drop_condition(f, batch, self.class_dropout)

    def losses(self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, tap: Tap | None = None) -> Tensor:
        """The weighted loss of each sample, [B], at times t [B]; a tap may look on."""
        eps = batch.normal("eps")
        out = f.output(f.path.mix(batch.x, eps, t), t, cond, tap=tap)
        error = (out - f.parameterisation.target(f.path, batch.x, eps, t)).float() ** 2
        weight: Tensor = self.weighting.weight(f.path, f.parameterisation, t)
        return error.flatten(1).mean(1) * weight.to(error)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at 8 fixed times, the midpoints of 8 equal shares of the training density."""
        f = roles["net"]
        at = self.times.fixed(f.path).to(batch.x.device)
        return torch.stack([self.losses(f, batch, batch.cond, t.expand(len(batch.x))).mean() for t in at]).mean()


def drop_condition(f: DenoiserLike, batch: Batch, share: float) -> Cond:
    """The batch's condition with a share of its rows replaced by the null one."""
    if not share or not batch.cond:
        return batch.cond
    drop, null = batch.noise.uniform("drop").to(batch.x.device) < share, f.null(batch.cond)
    return {k: torch.where(drop.reshape(-1, *[1] * (v.ndim - 1)), null[k], v) for k, v in batch.cond.items()}


def check_state(net: Any, owner: str) -> None:
    """Raises UserError for a network of no images, or whose state holds more than one, such as gen.models.reg."""
    spec = net.spec
    if not hasattr(spec, "channels"):
        raise UserError(f"{owner} trains on images, and a {type(spec).__name__} takes none")
    if len(members(net).state_shape or ()) != 3:
        raise UserError(
            f"{owner} trains on images alone, and this {type(spec).__name__} denoises a class token too: take another "
            "model, or the model reg with the objective reg"
        )
