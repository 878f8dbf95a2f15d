"""S4D."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.layers.ssm import s4d

__all__ = ["S4D"]


@dataclass(frozen=True)
class S4D:
    """A diagonal state space as one long convolution in both directions (gen.models.layers.ssm.s4d).

    Attributes:
        state: numbers of state per channel, even.
    """

    state: int = 32

    def __post_init__(self) -> None:
        check_fields(self, state="[2, inf)")
        if self.state % 2:
            raise UserError(f"S4D.state is {self.state}; it counts conjugate pairs and must be even")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return _S4D(width, state=self.state, bidirectional=True)


class _S4D(s4d.S4D):
    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        return super().forward(h)
