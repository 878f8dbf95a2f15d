"""Values beyond what a sensor holds: high dynamic range from one exposure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.operators.lib.operator import Operator

__all__ = ["Clip", "Clipped"]


@dataclass(frozen=True)
class Clip:
    """The sample times `gain`, clamped to [-1, 1].

    Attributes:
        gain: of the exposure; 2 loses half of the range.
    """

    gain: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self, gain="(0, 1000]")

    def on(self, shape: tuple[int, ...]) -> Clipped:
        """Return the operator on samples of any shape."""
        return Clipped(shape, self.gain)


class Clipped(Operator):
    """The sample times a gain, clamped to [-1, 1].

    Args:
        shape: of one sample.
        gain: see Clip.
    """

    linear: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], gain: float) -> None:
        super().__init__(shape, shape)
        self.gain = gain

    def A(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        return y / self.gain
