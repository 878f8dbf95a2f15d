"""Grey from colours: the measurement of colourisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Separable

__all__ = ["Grey"]


@dataclass(frozen=True)
class Grey:
    """A weighted sum of the three channels.

    Attributes:
        weights: of red, green and blue; default the luma of ITU-R BT.601, DDRM and DDNM have 1/3 each.
    """

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        check_fields(self)

    def on(self, shape: tuple[int, ...]) -> Separable:
        """Return the operator on samples [3, H, W]."""
        if shape[0] != 3:
            raise UserError(f"Grey: samples {list(shape)}; it needs 3 channels")
        return Separable(shape, {0: torch.tensor([self.weights], dtype=torch.float64)})
