"""LightNet's linear attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gen.config.fields import check_fields
from gen.models.layers.lightnet import LightNetMixer

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear:
    """Attention by a softmax of each channel of the keys over the tokens (gen.models.layers.lightnet).

    Attributes:
        heads: of it.
        gate_rank: rank of the output gate.
    """

    heads: int = 4
    gate_rank: int = 16

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", gate_rank="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return LightNetMixer(width, self.heads, self.gate_rank)
