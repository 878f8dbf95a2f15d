"""Denoising: the regression that trains diffusion and flow models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.tap import Tap
from gen.diffusion.times import Natural, Times
from gen.diffusion.weighting import UniformWeighting, Weighting
from gen.training.objectives import Batch, Objective, Roles, Step

__all__ = ["Denoising", "check_state", "drop_condition"]


@dataclass(frozen=True)
class Denoising(Objective):
    """E weight(t) |net(x_t, t) - target|^2, the mean over elements, on any path and parameterisation.

    Attributes:
        times: the density of t; that of the path by default.
        weighting: the factor on each sample's error.
        class_dropout: probability that a sample's condition is replaced by the null one, for classifier-free guidance;
            default that of Ho & Salimans 2022.
    """

    times: Times = part("diffusion.times", default=Natural())
    weighting: Weighting = part("diffusion.weighting", default=UniformWeighting())
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, class_dropout="[0, 1]")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        return {"net": net}

    def check_net(self, net: nn.Module) -> None:
        """Raise UserError for a network that this objective cannot train."""
        check_state(net, type(self).__name__)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t, cond = self.draw(f, batch)
        yield "net", self.losses(f, batch, cond, t).mean(), {}

    def draw(self, f: Denoiser, batch: Batch) -> tuple[Tensor, Cond]:
        """Draw this step's times [B], and the condition with some rows dropped."""
        t = self.times.at(batch.noise.uniform("t"), f.path)
        return batch.to_device(t), drop_condition(f, batch, self.class_dropout)

    def losses(self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the weighted loss of each sample, [B], at times t [B]; a tap may record features."""
        eps = batch.normal("eps")
        out = f.output(f.path.mix(batch.x, eps, t), t, cond, tap=tap)
        error = (out - f.parameterisation.target(f.path, batch.x, eps, t)).float() ** 2
        weight = self.weighting.weight(f.path, f.parameterisation, t)
        return error.flatten(1).mean(1) * weight.to(error)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times, the midpoints of 8 equal shares of the training density."""
        f = roles["net"]
        times = self.times.fixed(f.path).to(batch.x.device)
        return torch.stack([self.losses(f, batch, batch.cond, t.expand(len(batch.x))).mean() for t in times]).mean()


def drop_condition(f: DenoiserLike, batch: Batch, share: float) -> Cond:
    """Return the batch's condition with some rows replaced by the null one.

    Args:
        f: its `null` is taken.
        batch: condition and random numbers.
        share: probability of a row, in [0, 1].
    """
    if not share or not batch.cond:
        return batch.cond
    drop, null = batch.to_device(batch.noise.uniform("drop")) < share, f.null(batch.cond)
    return {k: torch.where(drop.reshape(-1, *[1] * (v.ndim - 1)), null[k], v) for k, v in batch.cond.items()}


def check_state(net: Any, owner: str) -> None:
    """Check that a network's state is a picture, a signal or a film, and nothing else.

    Args:
        net: the network.
        owner: names the objective in the error.

    Raises:
        UserError: for a network of text, or whose state holds more, such as gen.models.reg.
    """
    spec = net.spec
    if hasattr(spec, "vocab_size"):
        raise UserError(f"{owner} trains on images, and a {type(spec).__name__} takes none")
    if len(members(net).state_shape or ()) not in (2, 3, 4) and not hasattr(
        spec, "check"
    ):  # not of a network given as an object
        raise UserError(
            f"{owner} trains on images alone, and the state of this {type(spec).__name__} is no image: take another "
            "model, or the model reg with the objective reg, dfm with dfm"
        )
