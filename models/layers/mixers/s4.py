"""S4."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.layers.mixers.lib.directions import Both
from gen.models.layers.ssm import s4

__all__ = ["S4"]


@dataclass(frozen=True)
class S4:
    """A state space that is diagonal plus rank one, HiPPO-LegS at first, in both directions (Gu, Goel & Re 2022).

    See gen.models.layers.ssm.s4. The mixer s4d drops the rank one, and starts from eigenvalues of other shapes.

    Attributes:
        state: numbers of state per channel, even.
        shared: one set of weights for both directions.
    """

    state: int = 32
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, state="[2, inf)")
        if self.state % 2:
            raise UserError(f"S4.state is {self.state}; it counts conjugate pairs and must be even")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width on a grid."""
        return Both(functools.partial(s4.S4, width, grid[0] * grid[1], self.state), self.shared)
