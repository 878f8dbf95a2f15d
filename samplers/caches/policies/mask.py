"""A given list."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.policies.lib.policy import Policy, Rows

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask(Policy):
    """The steps that the list marks, one entry for each step of the loop: written by hand, or found by a search.

    A branch's first evaluation is computed in any case. The empty list computes everything.
    """

    mask: tuple[bool, ...] = ()

    def decide(self, context: Context, state: bool | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, bool]:
        if self.mask and len(self.mask) != context.steps:
            raise UserError(f"a mask of {len(self.mask)} steps was given to a loop of {context.steps}")
        return [not self.mask or state is None or self.mask[context.step]], True
