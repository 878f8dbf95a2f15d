"""An objective around another, which it adds something to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import DenoiserLike
from gen.training.objectives import Batch, Objective, Roles
from gen.training.objectives.denoise import Denoising

__all__ = ["AroundObjective"]


@dataclass(frozen=True)
class AroundObjective(Objective):
    """Base of such objectives: all but the loss is that of `inner`, which is no objective of the same class.

    Attributes:
        inner: an objective whose first loss trains the role "net".
    """

    inner: Any = part("training.objectives", kinds=(Objective,), default=Denoising())

    def __post_init__(self) -> None:
        if isinstance(self.inner, type(self)):
            name = type(self).__name__
            raise UserError(f"{name}: inner is {name.lower()} already; give the objective that it wraps")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = self.inner.roles(net, teacher)
        return found

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the validation loss of `inner`."""
        loss: Tensor = self.inner.validate(roles, batch)
        return loss

    def count(self, roles: Roles, batch: Batch) -> Tensor | None:
        found: Tensor | None = self.inner.count(roles, batch)
        return found

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        self.inner.observe(roles, logs)
