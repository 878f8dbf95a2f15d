"""Convolution with a kernel: Gaussian, box and motion blur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Decomposed, Separable
from gen.operators.lib.fourier import fourier, hartley, inverse_fourier
from gen.operators.lib.operator import Operator, spatial

__all__ = ["Blur", "Circulant", "Reflected"]


@dataclass(frozen=True)
class Blur:
    """Every channel of a picture convolved with one kernel, whose sum is 1.

    Attributes:
        kernel: "gaussian", cut off at 4 deviations; "motion", a line.
        width: the Gaussian's standard deviation, or the line's length, pixels.
        angle: of the line, degrees from the horizontal, counter-clockwise.
        edges: "circular", decomposed by Fourier; "reflect", mirrored at the outermost pixels' centres, decomposed if
            the kernel is Gaussian.
    """

    kernel: Literal["gaussian", "motion"] = "gaussian"
    width: float = 1.0
    angle: float = 0.0
    edges: Literal["circular", "reflect"] = "circular"

    def __post_init__(self) -> None:
        check_fields(self, width="(0, 1000]")

    def on(self, shape: tuple[int, ...]) -> Operator:
        """Return the operator on samples [C, H, W]."""
        sizes = spatial(shape)
        if len(sizes) != 2:
            raise UserError(f"Blur: it is of pictures [C, H, W], not of {list(shape)}")
        if self.kernel == "gaussian" and self.edges == "reflect":
            line = _gaussian(self.width)
            return Separable(shape, {len(shape) - 2 + i: _reflecting(line, n) for i, n in enumerate(sizes)})
        line = _gaussian(self.width) if self.kernel == "gaussian" else torch.empty(0)
        kernel = line[:, None] * line if self.kernel == "gaussian" else _motion(self.width, self.angle)
        return Circulant(shape, kernel) if self.edges == "circular" else Reflected(shape, kernel)


class Circulant(Decomposed):
    """Circular convolution of the last two dimensions with a kernel.

    Args:
        shape: of one sample.
        kernel: [h, w], both odd, the middle one is at distance 0; float64.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor) -> None:
        height, width = shape[-2:]
        rows, columns = ((torch.arange(k) - k // 2) % n for k, n in zip(kernel.shape, (height, width), strict=True))
        index = rows[:, None] * width + columns
        whole = torch.zeros(height * width, dtype=torch.float64)
        whole = whole.index_add(0, index.flatten(), kernel.double().flatten()).view(height, width)
        self.response = torch.fft.fft2(whole)
        size = self.response.abs()
        super().__init__(shape, shape, size.expand(shape))
        self.phase = torch.where(size > 0, self.response / torch.where(size > 0, size, 1), 1)

    def A(self, x: Tensor) -> Tensor:
        return self._filtered(x, self.response)

    def At(self, y: Tensor) -> Tensor:
        return self._filtered(y, self.response.conj())

    def U(self, c: Tensor) -> Tensor:
        return self._filtered(hartley(c, 2), self.phase)

    def Ut(self, y: Tensor) -> Tensor:
        return hartley(self._filtered(y, self.phase.conj()), 2)

    def V(self, c: Tensor) -> Tensor:
        return hartley(c, 2)

    def Vt(self, x: Tensor) -> Tensor:
        return hartley(x, 2)

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        kind = torch.complex64 if x.dtype == torch.float32 else torch.complex128
        return inverse_fourier(fourier(x, 2) * response.to(device=x.device, dtype=kind), 2).real


class Reflected(Operator):
    """Convolution of the last two dimensions with a kernel, the picture mirrored at the outermost pixels' centres.

    Args:
        shape: of one sample.
        kernel: [h, w], both odd; float64.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor) -> None:
        super().__init__(shape, shape)
        self.kernel = kernel.double().flip(0, 1)[None, None]  # conv2d correlates
        self.rows, self.columns = (_mirrored(k // 2, n) for k, n in zip(kernel.shape, shape[-2:], strict=True))

    def A(self, x: Tensor) -> Tensor:
        padded = x.flatten(0, -3)[:, None, self.rows.to(x.device)][..., self.columns.to(x.device)]
        return conv2d(padded, self.like("kernel", x)).view_as(x)

    def At(self, y: Tensor) -> Tensor:
        padded = conv_transpose2d(y.flatten(0, -3)[:, None], self.like("kernel", y))
        for dim, index, n in (-2, self.rows, y.shape[-2]), (-1, self.columns, y.shape[-1]):
            sizes = list(padded.shape)
            sizes[dim] = n
            padded = padded.new_zeros(sizes).index_add(dim, index.to(y.device), padded)
        return padded.view_as(y)


def _gaussian(deviation: float) -> Tensor:
    x = torch.arange(-math.ceil(4 * deviation), math.ceil(4 * deviation) + 1, dtype=torch.float64)
    return torch.exp(-(x**2) / (2 * deviation**2)) / torch.exp(-(x**2) / (2 * deviation**2)).sum()


def _motion(length: float, angle: float) -> Tensor:
    """Return a line of a length through the centre: points of it, each divided between its four nearest pixels."""
    radius, points = math.ceil(length / 2), 16 * math.ceil(length)
    along = ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5) * length
    rows, columns = -along * math.sin(math.radians(angle)), along * math.cos(math.radians(angle))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    near = [(1 - (offsets - one[:, None]).abs()).clamp(min=0) for one in (rows, columns)]  # [points, 2 radius + 1]
    return near[0].mT @ near[1] / points


def _mirrored(radius: int, n: int) -> Tensor:
    """Return the indices of n pixels with `radius` mirrored ones at either end."""
    index = torch.arange(-radius, n + radius) % max(2 * n - 2, 1)
    return torch.where(index < n, index, 2 * n - 2 - index)


def _reflecting(line: Tensor, n: int) -> Tensor:
    """Return the matrix [n, n] of a convolution of one dimension with mirrored edges."""
    radius = len(line) // 2
    taps = torch.arange(n)[:, None] + torch.arange(len(line))
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, _mirrored(radius, n)[taps], line.expand(n, -1))
