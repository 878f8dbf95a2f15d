"""The contract of measurement operators, with defaults that need A and its adjoint only."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.prediction import expand
from gen.operators.lib.solve import conjugate_gradients, largest_singular_value

__all__ = ["SVD", "Operator", "OperatorSpec", "per_row", "spatial"]


@runtime_checkable
class OperatorSpec(Protocol):
    """A spec of an operator: a frozen dataclass of gen.operators, or of one's own."""

    def on(self, shape: tuple[int, ...]) -> Operator:
        """Return the operator on samples of a shape.

        Args:
            shape: of one sample, such as [C, H, W].

        Raises:
            UserError: for a shape that cannot be measured so.
        """
        ...


class SVD(NamedTuple):
    """A = U diag(s) V' by functions over batches. Coordinates are of any shape; s is 0 for what A does not measure.

    V is orthogonal; U's columns are orthonormal where s > 0.
    """

    U: Callable[[Tensor], Tensor]  # coordinates -> y
    Ut: Callable[[Tensor], Tensor]  # y -> coordinates
    V: Callable[[Tensor], Tensor]  # coordinates -> x
    Vt: Callable[[Tensor], Tensor]  # x -> coordinates
    s: Tensor  # singular values, shaped as the coordinates of one sample, float64


class Operator:
    """y = A x on samples of one shape. A subclass has `A`, and if it is linear `At`; the rest follows from these.

    Everything is of the dtype and on the device of its argument, and differentiable in it. A subclass that is not
    linear says so; it then has A, `vjp`, and pinv if there is a right inverse, and refuses the rest.

    Args:
        shape: of one sample.
        measured: shape of one sample's y.
    """

    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
        self.shape, self.measured = tuple(shape), tuple(measured)
        self._like: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)} -> {list(self.measured)})"

    def A(self, x: Tensor) -> Tensor:
        """Return A x, [B, *measured], of x [B, *shape]."""
        raise NotImplementedError

    def At(self, y: Tensor) -> Tensor:
        """Return A' y, [B, *shape], of y [B, *measured]."""
        raise self._refused("adjoint")

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return J' v, [B, *shape], for the Jacobian J of A at x and v [B, *measured]; A' v of a linear one."""
        if self.linear:
            return self.At(v)
        if not self.differentiable:
            raise self._refused("derivative")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.A(x), x, v)[0]

    def pinv(self, y: Tensor) -> Tensor:
        """Return A+ y, [B, *shape]: of the x that fit y best, the smallest."""
        self._must_be_linear("pseudo-inverse")
        return conjugate_gradients(lambda x: self.At(self.A(x)), self.At(y))

    def solve(self, v: Tensor, noise: float | Tensor, c: float | Tensor = 1.0) -> Tensor:
        """Return (c A A' + noise^2)^-1 v, [B, *measured]; the least one where that is singular.

        Args:
            v: [B, *measured].
            noise, c: numbers >= 0, or one for each row [B].
        """
        self._must_be_linear("solve")
        n2, c = per_row(noise, v) ** 2, per_row(c, v)
        return conjugate_gradients(lambda w: c * self.A(self.At(w)) + n2 * w, v)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor) -> Tensor:
        """Return argmin over x of |A x - y|^2 / 2 + rho |x - z|^2 / 2, [B, *shape]; rho = 0 is the limit.

        Args:
            z: [B, *shape].
            y: [B, *measured].
            rho: a number >= 0, or one for each row [B].
        """
        noise = rho.sqrt() if isinstance(rho, Tensor) else rho**0.5
        return z + self.At(self.solve(y - self.A(z), noise))

    def svd(self) -> SVD | None:
        """Return the singular value decomposition, None where only iterations would give it."""
        return None

    def picture(self, y: Tensor) -> Tensor:
        """Return y where it has x's channels and dimensions, else its pseudo-inverse, [B, *shape].

        Args:
            y: [B, *measured].
        """
        is_one = len(self.measured) == len(self.shape) and self.measured[0] == self.shape[0]
        return y if is_one else self.pinv(y)

    def norm(self) -> float:
        """Return |A|, the largest singular value; from below where it is iterated."""
        self._must_be_linear("norm")
        seed = torch.Generator().manual_seed(0)
        start = torch.randn(1, *self.shape, generator=seed, dtype=torch.float64)
        return largest_singular_value(self.A, self.At, start)

    def like(self, name: str, x: Tensor) -> Tensor:
        """Return one of its own tensors in the dtype and on the device of x, converted once.

        Args:
            name: of the attribute.
            x: any tensor.
        """
        key = (name, x.dtype, x.device)
        if key not in self._like:
            self._like[key] = getattr(self, name).to(x)
        return self._like[key]

    def _must_be_linear(self, what: str) -> None:
        if not self.linear:
            raise self._refused(what)

    def _refused(self, what: str) -> UserError:
        return UserError(f"{self!r} has no {what}: it is not linear")


def per_row(value: float | Tensor, x: Tensor) -> Tensor:
    """Return a number, or one for each row, so that it multiplies x.

    Args:
        value: a number, 0-d, or [B].
        x: [B, ...].
    """
    return expand(torch.as_tensor(value, dtype=x.dtype, device=x.device), x)


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes without channels: [H, W] of [C, H, W], and [N] of [N] itself.

    Args:
        shape: of one sample.
    """
    return tuple(shape[1:] if len(shape) > 1 else shape)
