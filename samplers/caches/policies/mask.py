"""A given list."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.parts import CachePolicy, Rows

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask(CachePolicy):
    """The steps that a list marks, written by hand, or found by a search.

    Attributes:
        mask: True for a step to compute, one entry for each step of the loop; a branch's first evaluation is computed
            in any case. () computes everything.
    """

    mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def decide(self, context: Context, state: bool | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, bool]:
        if self.mask and len(self.mask) != context.steps:
            raise UserError(f"a mask of {len(self.mask)} steps was given to a loop of {context.steps}")
        return [not self.mask or state is None or self.mask[context.step]], True
