"""Restoration: denoising of what a degraded picture lacks, with that picture as a condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.net import members, unwrap
from gen.operators.lib.operator import OperatorSpec
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["Restoration", "residuals"]


@dataclass(frozen=True)
class Restoration(Denoising):
    """Denoising of x - base, the base made of the degraded picture cond["low"] by the model `beside`.

    On the path `shift` that is ResShift (Yue et al. 2023), on `bridge` I2SB (Liu et al. 2023), on any other a diffusion
    of residuals. The base is what the network adds again when it samples, and gets no gradient here. "low" is in the
    data, or made here of x anew at every step.

    Attributes:
        operator: of gen.operators, which makes "low" of x; what it measures is enlarged by its pseudo-inverse where it
            is no picture. One with a seed is always the same: the data `degraded` draw another for each picture. None
            for data that have "low".
        noise: standard deviation of the noise of what is measured.
    """

    operator: Any = part("operators", kinds=(OperatorSpec,), default=None)
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, noise="[0, inf)")
        if self.noise and self.operator is None:
            raise UserError(f"{type(self).__name__}: noise = {self.noise} without an operator, whose it would be")

    def check_net(self, net: nn.Module) -> None:
        super().check_net(net)
        if members(net).base_picture is None:
            spec: Any = unwrap(net).spec
            raise UserError(
                f"{type(self).__name__} trains the model beside, around any other; this is a {type(spec).__name__}"
            )

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield from super().__call__(roles, residuals(roles["net"], self.degraded(batch))[0])

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times, as of Denoising."""
        return super().validate(roles, residuals(roles["net"], self.degraded(batch))[0])

    @torch.no_grad()
    def degraded(self, batch: Batch) -> Batch:
        """Return the batch with cond["low"]: as the data have it, or of `operator` and this step's noise."""
        if self.operator is None:
            return batch
        if "low" in batch.cond:
            raise UserError(f"{type(self).__name__}: operator beside data that have cond['low']; give one of the two")
        made = self.operator.on(tuple(batch.x.shape[1:]))
        y = made.A(batch.x)
        if self.noise:
            drawn = batch.noise.normal("measured", y.shape[1:])
            y = y + self.noise * batch.to_device(drawn).to(y.dtype)
        return replace(batch, cond={**batch.cond, "low": made.picture(y)})


def residuals(f: Any, batch: Batch) -> tuple[Batch, Tensor]:
    """Return the batch of x - base, whose cond holds the base, both without gradient; and the base with it.

    Args:
        f: the denoiser of a network with `base_picture`.
        batch: pictures with cond["low"].
    """
    cond = members(f.net).with_base(batch.cond, batch.x.shape[2:])
    base = cond["base"].detach()
    return replace(batch, x=batch.x - base, cond={**cond, "base": base}), cond["base"]
