"""Mamba."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.layers.ssm import mamba

__all__ = ["Mamba"]


@dataclass(frozen=True)
class Mamba:
    """A selective state space in both directions (gen.models.layers.ssm.mamba; Vision Mamba, Zhu et al. 2024).

    Attributes:
        state: numbers of state per channel.
        expand: inner channels over width.
    """

    state: int = 4
    expand: int = 1

    def __post_init__(self) -> None:
        check_fields(self, state="[1, inf)", expand="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return _Mamba(width, state=self.state, expand=self.expand, bidirectional=True)


class _Mamba(mamba.Mamba):
    def forward(self, h: Tensor, rope: object = None) -> Tensor:  # type: ignore[override]
        return super().forward(h)
