"""An operator of another library, given as an object: a physics of deepinv, or whatever has A and A_adjoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.operators.lib.operator import Operator

__all__ = ["Physics", "PhysicsOperator"]


@dataclass(frozen=True)
class Physics:
    """A linear operator that is an object with A(x) and A_adjoint(y), as deepinv's have; nothing is imported.

    Its pseudo-inverse A_dagger(y) is used if it has one. deepinv's pictures are in [0, 1], those here in [-1, 1]: the
    operator's `from_unit` converts its measurements, and a noise level of its doubles.

    Attributes:
        of: the object; not stored.
    """

    of: Any = field(compare=False, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        check_fields(self)
        lacks = [name for name in ("A", "A_adjoint") if not callable(getattr(self.of, name, None))]
        if lacks and self.of is not None:
            raise UserError(f"Physics: of = {shown(self.of)} lacks {' and '.join(lacks)}")

    def on(self, shape: tuple[int, ...]) -> PhysicsOperator:
        """Return the operator on samples of a shape."""
        if self.of is None:
            raise UserError("Physics: its object is not stored; give it again")
        return PhysicsOperator(shape, self.of)


class PhysicsOperator(Operator):
    """An operator whose A, adjoint and pseudo-inverse are another library's.

    Args:
        shape: of one sample.
        of: the object.
    """

    def __init__(self, shape: tuple[int, ...], of: Any) -> None:
        self.of = of
        y = of.A(torch.zeros(1, *shape))
        if not isinstance(y, Tensor) or y.is_complex() or not len(y) == 1:
            raise UserError(f"{type(of).__name__}.A must return a real tensor [B, ...]; this one returns {shown(y)}")
        super().__init__(shape, tuple(y.shape[1:]))

    def A(self, x: Tensor) -> Tensor:
        return self.of.A(x)

    def At(self, y: Tensor) -> Tensor:
        return self.of.A_adjoint(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.of.A_dagger(y) if hasattr(self.of, "A_dagger") else super().pinv(y)

    def from_unit(self, y: Tensor) -> Tensor:
        """Return the measurements of pictures in [-1, 1] for those of the same pictures in [0, 1].

        Args:
            y: [B, *measured].
        """
        return 2 * y - self.A(y.new_ones(1, *self.shape))
