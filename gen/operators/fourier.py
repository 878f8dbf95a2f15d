"""Some coefficients of the Fourier transform: magnetic resonance imaging, with one coil or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Decomposed
from gen.operators.lib.fourier import as_complex, as_real, fourier, hartley, inverse_fourier
from gen.operators.lib.operator import Operator, spatial

__all__ = ["Fourier", "MaskedFourier", "SensedFourier"]


@dataclass(frozen=True)
class Fourier:
    """The coefficients that a mask selects, of every channel and coil: y is [C, coils, 2, number], real and imaginary.

    Pictures are real by default. With coils, each sees the picture under a smooth complex sensitivity of its own, here
    that of a circle of coils around it; their squares sum to 1. For measured ones: SensedFourier.

    Attributes:
        acceleration: of the coefficients, one of so many is measured.
        centre: share of the lowest frequencies that is always measured, in each dimension of the pattern.
        pattern: "lines" of random columns, as of Cartesian scans; "points" at random in two dimensions.
        coils: how many; 1 has sensitivity 1.
        complex: whether the sample has two channels, the real and the imaginary part.
        seed: of the pattern.
    """

    acceleration: float = 4.0
    centre: float = 0.08
    pattern: Literal["lines", "points"] = "lines"
    coils: int = 1
    complex: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, acceleration="[1, 10000]", centre="[0, 1]", coils="[1, 256]", seed="[0, inf)")

    def on(self, shape: tuple[int, ...]) -> Operator:
        """Return the operator on samples [C, H, W], or [2, H, W] of complex pictures."""
        if len(spatial(shape)) != 2 or (self.complex and shape[0] != 2):
            raise UserError(f"Fourier: it is of samples {'[2, H, W]' if self.complex else '[C, H, W]'}, not {shape}")
        mask = self.mask(shape[1], shape[2])
        if self.coils == 1:
            return MaskedFourier(shape, mask, self.complex)
        return SensedFourier(shape, mask, _coils(self.coils, shape[1], shape[2]), self.complex)

    def mask(self, height: int, width: int) -> Tensor:
        """Return which coefficients are measured, [H, W], in the order of torch.fft: frequency 0 first."""
        sizes = (1, width) if self.pattern == "lines" else (height, width)
        frequency = [torch.fft.fftfreq(n, dtype=torch.float64).abs() * 2 for n in sizes]  # 0 to 1
        low = (frequency[0][:, None] < max(self.centre, 1e-9)) & (frequency[1] < max(self.centre, 1e-9))
        draw = torch.rand(sizes, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        order = (draw - 2 * low.double()).flatten().argsort()
        count = max(round(low.numel() / self.acceleration), int(low.sum()) if self.centre else 1)
        mask = torch.zeros(low.numel(), dtype=torch.bool).index_fill(0, order[:count], True)
        return mask.view(sizes).expand(height, width)


class MaskedFourier(Decomposed):
    """Some Fourier coefficients of real or complex pictures.

    Of a real picture opposite coefficients are conjugates: where both are measured the singular value is 1, where one
    is, the square root of 1/2.

    Args:
        shape: of one sample, [C, H, W], or [2, H, W] if complex.
        mask: [H, W], which coefficients are measured.
        complex: whether the two channels are the real and the imaginary part.
    """

    def __init__(self, shape: tuple[int, ...], mask: Tensor, complex: bool = False) -> None:
        self.complex, self.onto = complex, complex
        self.index = mask.flatten().nonzero()[:, 0]
        opposite = mask.flip(0, 1).roll((1, 1), (0, 1))
        weight = mask.double() if complex else (mask.double() + opposite.double()) / 2
        channels = 1 if complex else shape[0]
        super().__init__(shape, (channels, 1, 2, len(self.index)), weight.sqrt().expand(shape))
        self.inverse = torch.where(self.s > 0, 1 / torch.where(self.s > 0, self.s, 1), 0)

    def A(self, x: Tensor) -> Tensor:
        c = fourier(as_complex(x, 1)[:, None] if self.complex else x, 2)
        return as_real(c.flatten(-2)[..., self.index.to(x.device)], -2)[:, :, None]

    def At(self, y: Tensor) -> Tensor:
        c = as_complex(y[:, :, 0], -2)
        whole = c.new_zeros(*c.shape[:-1], self.shape[-2] * self.shape[-1])
        x = inverse_fourier(whole.index_copy(-1, self.index.to(y.device), c).unflatten(-1, self.shape[-2:]), 2)
        return as_real(x[:, 0], 1) if self.complex else x.real

    def U(self, c: Tensor) -> Tensor:
        return self.A(self.V(self.like("inverse", c) * c))

    def Ut(self, y: Tensor) -> Tensor:
        return self.like("inverse", y) * self.Vt(self.At(y))

    def V(self, c: Tensor) -> Tensor:
        return as_real(inverse_fourier(as_complex(c, 1), 2), 1) if self.complex else hartley(c, 2)

    def Vt(self, x: Tensor) -> Tensor:
        return as_real(fourier(as_complex(x, 1), 2), 1) if self.complex else hartley(x, 2)


class SensedFourier(Operator):
    """Some Fourier coefficients of a picture as several coils see it.

    Args:
        shape: of one sample, [C, H, W], or [2, H, W] if complex.
        mask: [H, W], which coefficients are measured.
        maps: sensitivities of the coils [coils, H, W], complex.
        complex: whether the two channels are the real and the imaginary part.
    """

    def __init__(self, shape: tuple[int, ...], mask: Tensor, maps: Tensor, complex: bool = False) -> None:
        self.complex, self.maps, self.index = complex, maps, mask.flatten().nonzero()[:, 0]
        super().__init__(shape, (1 if complex else shape[0], len(maps), 2, len(self.index)))

    def A(self, x: Tensor) -> Tensor:
        picture = as_complex(x, 1)[:, None] if self.complex else x
        c = fourier(picture[:, :, None] * self._maps(x), 2)
        return as_real(c.flatten(-2)[..., self.index.to(x.device)], -2)

    def At(self, y: Tensor) -> Tensor:
        c = as_complex(y, -2)
        whole = c.new_zeros(*c.shape[:-1], self.shape[-2] * self.shape[-1])
        coils = inverse_fourier(whole.index_copy(-1, self.index.to(y.device), c).unflatten(-1, self.shape[-2:]), 2)
        x = (coils * self._maps(y).conj()).sum(2)
        return as_real(x[:, 0], 1) if self.complex else x.real

    def _maps(self, x: Tensor) -> Tensor:
        return self.maps.to(device=x.device, dtype=torch.complex64 if x.dtype == torch.float32 else torch.complex128)


def _coils(n: int, height: int, width: int) -> Tensor:
    """Return Gaussian sensitivities of coils on a circle around a picture, of a phase each."""
    rows, columns = (torch.linspace(-1, 1, k, dtype=torch.float64) for k in (height, width))
    angle = torch.arange(n, dtype=torch.float64)[:, None, None] * (2 * torch.pi / n)
    down, right = rows[:, None] - 1.2 * angle.sin(), columns - 1.2 * angle.cos()
    size = torch.exp(-(down**2 + right**2) / 2)
    phase = angle + 0.5 * (columns * angle.cos() + rows[:, None] * angle.sin())
    return torch.polar(size / size.square().sum(0).sqrt(), phase)
