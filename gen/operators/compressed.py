"""Compressed sensing: few random projections of the whole sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Decomposed, Dense
from gen.operators.lib.fourier import hartley
from gen.operators.lib.operator import Operator

__all__ = ["Compressed", "Mixed"]

LARGEST = 8192  # numbers in a sample, for a matrix that is decomposed as a whole


@dataclass(frozen=True)
class Compressed:
    """Random projections of all numbers of a sample, `share` times as many as there are.

    Attributes:
        share: of the numbers of the sample.
        kind: "gaussian" and "sign" are matrices of independent normal numbers or signs, over the square root of their
            rows' number, for small samples; "hartley" measures random entries of the Hartley transform of the sample
            under random signs, for samples of any size, by orthonormal rows.
        seed: of the projections.
    """

    share: float = 0.25
    kind: Literal["gaussian", "sign", "hartley"] = "hartley"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, share="(0, 1]", seed="[0, inf)")

    def on(self, shape: tuple[int, ...]) -> Operator:
        """Return the operator on samples of any shape."""
        n = math.prod(shape)
        m, draw = max(round(self.share * n), 1), torch.Generator().manual_seed(self.seed)
        if self.kind == "hartley":
            return Mixed(shape, _signs(draw, n), torch.randperm(n, generator=draw)[:m].sort().values)
        if n > LARGEST:
            raise UserError(f'Compressed: {n} numbers in a sample; a matrix has at most {LARGEST}, kind "hartley" any')
        gaussian = self.kind == "gaussian"
        matrix = torch.randn(m, n, generator=draw, dtype=torch.float64) if gaussian else _signs(draw, m, n)
        return Dense(shape, matrix / math.sqrt(m))


class Mixed(Decomposed):
    """Some entries of the Hartley transform of a sample under random signs; its rows are orthonormal.

    Args:
        shape: of one sample.
        signs: 1 or -1 for each number of the sample, all in one row.
        index: of the entries that are measured.
    """

    def __init__(self, shape: tuple[int, ...], signs: Tensor, index: Tensor) -> None:
        self.signs, self.index = signs.double(), index
        measured = torch.zeros(len(signs), dtype=torch.float64).index_fill(0, index, 1.0)
        super().__init__(shape, (len(index),), measured)

    def U(self, c: Tensor) -> Tensor:
        return c[:, self.index.to(c.device)]

    def Ut(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), len(self.signs)).index_copy(1, self.index.to(y.device), y)

    def V(self, c: Tensor) -> Tensor:
        return (hartley(c, 1) * self.like("signs", c)).unflatten(1, self.shape)

    def Vt(self, x: Tensor) -> Tensor:
        return hartley(x.flatten(1) * self.like("signs", x), 1)


def _signs(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=draw).double() * 2 - 1
