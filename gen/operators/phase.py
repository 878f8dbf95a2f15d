"""Magnitudes of the Fourier transform, without its phases: phase retrieval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.fourier import fourier
from gen.operators.lib.operator import Operator, spatial

__all__ = ["Phase", "Magnitudes"]  # noqa: RUF022 (the plug-in comes first)


@dataclass(frozen=True)
class Phase:
    """Magnitudes of the orthonormal Fourier transform of a picture surrounded by zeros (Chung et al. 2023, DPS).

    Attributes:
        oversampling: height and width of the padded picture over its own; 2 as there.
    """

    oversampling: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self, oversampling="[1, 16]")

    def on(self, shape: tuple[int, ...]) -> Magnitudes:
        """Return the operator on samples [C, H, W]."""
        if len(spatial(shape)) != 2:
            raise UserError(f"Phase: it is of pictures [C, H, W], not of {list(shape)}")
        return Magnitudes(shape, self.oversampling)


class Magnitudes(Operator):
    """Magnitudes of the Fourier transform of padded pictures.

    Args:
        shape: of one sample.
        oversampling: see Phase.
    """

    linear: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], oversampling: float) -> None:
        self.more = [math.ceil(n * (oversampling - 1)) for n in shape[-2:]]
        super().__init__(shape, (shape[0], *(n + more for n, more in zip(shape[-2:], self.more, strict=True))))

    def A(self, x: Tensor) -> Tensor:
        height, width = self.more
        return fourier(pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)), 2).abs()
