"""Operators whose singular value decomposition is known: everything else is a formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.operators.lib.operator import SVD, Operator, per_row

__all__ = ["Decomposed", "Dense", "Separable"]


class Decomposed(Operator):
    """An operator given by U, Ut, V, Vt and s, see SVD. A and At may be written as what is faster.

    Args:
        shape, measured: of one sample and of its y.
        s: singular values, of the coordinates' shape; those at rounding are taken as 0.
    """

    onto: bool = True  # the columns of U span all y

    def __init__(self, shape: tuple[int, ...], measured: tuple[int, ...], s: Tensor) -> None:
        super().__init__(shape, measured)
        floor = float(s.max()) * torch.finfo(torch.float64).eps * math.prod(shape) if s.numel() else 0.0
        self.s = torch.where(s > floor, s, torch.zeros_like(s)).double()

    def U(self, c: Tensor) -> Tensor:
        """Return U c, [B, *measured], of coordinates [B, ...]."""
        raise NotImplementedError

    def Ut(self, y: Tensor) -> Tensor:
        """Return U' y, coordinates [B, ...], of y [B, *measured]."""
        raise NotImplementedError

    def V(self, c: Tensor) -> Tensor:
        """Return V c, [B, *shape], of coordinates [B, ...]."""
        raise NotImplementedError

    def Vt(self, x: Tensor) -> Tensor:
        """Return V' x, coordinates [B, ...], of x [B, *shape]."""
        raise NotImplementedError

    def A(self, x: Tensor) -> Tensor:
        return self.U(self.like("s", x) * self.Vt(x))

    def At(self, y: Tensor) -> Tensor:
        return self.V(self.like("s", y) * self.Ut(y))

    def pinv(self, y: Tensor) -> Tensor:
        return self.V(_inverse(self.like("s", y)) * self.Ut(y))

    def solve(self, v: Tensor, noise: float | Tensor, c: float | Tensor = 1.0) -> Tensor:
        a = self.Ut(v)
        inside = a * _inverse(per_row(c, a) * self.like("s", a) ** 2 + per_row(noise, a) ** 2)
        if self.onto:
            return self.U(inside)
        return self.U(inside) + (v - self.U(a)) * _inverse(per_row(noise, v) ** 2)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        a, s = self.Ut(y - self.A(z)), self.like("s", z)
        return z + self.V(s * _inverse(s**2 + per_row(rho, a)) * a)

    def svd(self) -> SVD:
        return SVD(self.U, self.Ut, self.V, self.Vt, self.s)

    def norm(self) -> float:
        return float(self.s.max()) if self.s.numel() else 0.0


class Separable(Decomposed):
    """One matrix along each of some dimensions: the Kronecker product, whose decomposition is that of its factors.

    Args:
        shape: of one sample.
        factors: matrix [m, n] by dimension of the sample, float64; n is the sample's size there.
    """

    def __init__(self, shape: tuple[int, ...], factors: dict[int, Tensor]) -> None:
        self.dims = sorted(factors)
        measured, s = list(shape), torch.ones(shape, dtype=torch.float64)
        for dim in self.dims:
            M = factors[dim].double()
            U, values, Vt = torch.linalg.svd(M)
            k = len(values)
            values, U = _padded(values, M.shape[1]), _padded(U[:, :k], M.shape[1])
            for name, matrix in ("A", M), ("U", U), ("V", Vt.mT.contiguous()):
                setattr(self, f"{name}{dim}", matrix)
            measured[dim] = M.shape[0]
            s = s * values.view(-1, *[1] * (len(shape) - dim - 1))
        super().__init__(shape, tuple(measured), s)
        self.onto = all(factors[dim].shape[0] <= factors[dim].shape[1] for dim in self.dims)

    def A(self, x: Tensor) -> Tensor:
        return self._along("A", x)

    def At(self, y: Tensor) -> Tensor:
        return self._along("A", y, transposed=True)

    def U(self, c: Tensor) -> Tensor:
        return self._along("U", c)

    def Ut(self, y: Tensor) -> Tensor:
        return self._along("U", y, transposed=True)

    def V(self, c: Tensor) -> Tensor:
        return self._along("V", c)

    def Vt(self, x: Tensor) -> Tensor:
        return self._along("V", x, transposed=True)

    def _along(self, name: str, x: Tensor, transposed: bool = False) -> Tensor:
        for dim in self.dims:
            matrix = self.like(f"{name}{dim}", x)
            x = torch.movedim(torch.movedim(x, dim + 1, -1) @ (matrix if transposed else matrix.mT), -1, dim + 1)
        return x


class Dense(Separable):
    """The product of a matrix and samples of a shape, decomposed.

    Args:
        shape: of one sample.
        matrix: [m, n], n numbers in a sample.
    """

    def __init__(self, shape: tuple[int, ...], matrix: Tensor) -> None:
        n = math.prod(shape)
        if matrix.dim() != 2 or matrix.shape[1] != n:
            raise UserError(f"a matrix {list(matrix.shape)} for samples {list(shape)}: it must have {n} columns")
        super().__init__((n,), {0: matrix})
        self.shape = tuple(shape)

    def A(self, x: Tensor) -> Tensor:
        return super().A(x.flatten(1))

    def At(self, y: Tensor) -> Tensor:
        return super().At(y).unflatten(1, self.shape)

    def V(self, c: Tensor) -> Tensor:
        return super().V(c).unflatten(1, self.shape)

    def Vt(self, x: Tensor) -> Tensor:
        return super().Vt(x.flatten(1))


def _padded(x: Tensor, n: int) -> Tensor:
    """Return x with zeros behind, up to n in its last dimension."""
    return torch.nn.functional.pad(x, (0, n - x.shape[-1]))


def _inverse(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 where x is 0."""
    return torch.where(x == 0, 0, 1 / torch.where(x == 0, 1, x))
