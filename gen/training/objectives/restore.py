"""Restoration: denoising of what a degraded picture lacks, with that picture as a condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import members, unwrap
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["Restoration", "residuals"]


@dataclass(frozen=True)
class Restoration(Denoising):
    """Denoising of x - base, the base made of the data's cond["low"] by the model `beside`.

    On the path `shift` that is ResShift (Yue et al. 2023), on `bridge` I2SB (Liu et al. 2023), on any other a diffusion
    of residuals. The base is what the network adds again when it samples, and gets no gradient here.
    """

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        return {"net": net}

    def check_net(self, net: nn.Module) -> None:
        super().check_net(net)
        check_restores(net, type(self).__name__)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield from super().__call__(roles, residuals(roles["net"], batch)[0])

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times, as of Denoising."""
        return super().validate(roles, residuals(roles["net"], batch)[0])


def check_restores(net: nn.Module, owner: str) -> None:
    """Raise UserError for a network whose states are no residuals.

    Args:
        net: the network.
        owner: names the objective in the error.
    """
    if members(net).base is None:
        spec: Any = unwrap(net).spec
        raise UserError(f"{owner} trains the model beside, around any other; this is a {type(spec).__name__}")


def residuals(f: Any, batch: Batch) -> tuple[Batch, Tensor]:
    """Return the batch of x - base, whose cond holds the base, both without gradient; and the base with it.

    Args:
        f: the denoiser of a network with `base`.
        batch: pictures with cond["low"].
    """
    cond = members(f.net).with_base(batch.cond, batch.x.shape[2:])
    base = cond["base"].detach()
    return replace(batch, x=batch.x - base, cond={**cond, "base": base}), cond["base"]
