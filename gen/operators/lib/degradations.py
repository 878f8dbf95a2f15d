"""Pieces of random degradations of photographs [C, H, W] in [0, 1]: kernels, noise, resizing, compression."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gen.config.errors import UserError
from gen.operators.jpeg import JPEG
from gen.operators.lib.operator import Operator

__all__ = ["Degradation", "blur_kernel", "compressed", "filtered", "normal", "resized", "sinc_kernel", "uniform"]


class Degradation(Operator):
    """A random degradation of pictures, always the same one: A draws it again for each row, from one seed.

    Args:
        shape, measured: of one picture and of what is left of it.
        degrade: from a picture [C, H, W] in [0, 1] and a generator to what is left, which A rounds to 8 bits.
        seed: of the generator.
    """

    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __init__(
        self,
        shape: tuple[int, ...],
        measured: tuple[int, ...],
        degrade: Callable[[Tensor, torch.Generator], Tensor],
        seed: int,
    ) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(f"it degrades pictures [1, H, W] or [3, H, W], not {list(shape)}")
        super().__init__(shape, measured)
        self.degrade, self.seed = degrade, seed

    def A(self, x: Tensor) -> Tensor:
        pictures = (x.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
        left = torch.stack([self.degrade(one, torch.Generator().manual_seed(self.seed)) for one in pictures])
        return ((left.clamp(0, 1) * 255).round() / 127.5 - 1).to(x)


def blur_kernel(
    size: int,
    deviation: tuple[float, float],
    kind: Literal["gaussian", "generalised", "plateau"],
    stretched: bool,
    draw: torch.Generator,
) -> Tensor:
    """Return a random kernel [size, size] whose sum is 1, of a quadratic form q = d' S^-1 d of the distance d.

    Args:
        size: odd.
        deviation: lowest and highest, pixels.
        kind: exp(-q / 2), exp(-q^beta / 2) or 1 / (1 + q^beta).
        stretched: whether the deviation differs along a random axis.
        draw: of deviations, angle and beta.
    """
    along = uniform(draw, *deviation)
    across = uniform(draw, *deviation) if stretched else along
    angle = uniform(draw, -math.pi, math.pi) if stretched else 0.0
    at = torch.arange(size, dtype=torch.float64) - size // 2
    u, v = at * math.cos(angle) + at[:, None] * math.sin(angle), at[:, None] * math.cos(angle) - at * math.sin(angle)
    q = (u / along) ** 2 + (v / across) ** 2
    if kind == "gaussian":
        kernel = torch.exp(-q / 2)
    else:
        ranges = ((0.5, 1), (1, 4)) if kind == "generalised" else ((1, 1), (1, 2))
        beta = uniform(draw, *ranges[uniform(draw, 0, 1) < 0.5])
        kernel = torch.exp(-(q**beta) / 2) if kind == "generalised" else 1 / (1 + q**beta)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Return the circular low-pass filter w J1(w r) / (2 pi r) in a square [size, size], divided by its sum.

    Args:
        size: odd.
        cutoff: w, radians per pixel.
    """
    at = torch.arange(size, dtype=torch.float64) - size // 2
    r = (at**2 + at[:, None] ** 2).sqrt()
    around = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r.clamp(min=1))
    kernel = torch.where(r == 0, cutoff**2 / (4 * math.pi), around)
    return kernel / kernel.sum()


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Return a picture under a kernel that is its own reflection; mirrored, if it is too small repeated at its edges.

    By Fourier transforms, whose time does not grow with the kernel.

    Args:
        x: [C, H, W].
        kernel: [K, K], K odd.
    """
    radius = len(kernel) // 2
    x = pad(x[None], [radius] * 4, mode="reflect" if radius < min(x.shape[1:]) else "replicate")[0]
    sizes = (x.shape[1], x.shape[2])
    product = torch.fft.rfft2(x) * torch.fft.rfft2(kernel.to(x), s=sizes)
    return torch.fft.irfft2(product, s=sizes)[:, 2 * radius :, 2 * radius :]


def resized(x: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """Return a picture of another size, without antialiasing.

    Args:
        x: [C, H, W].
        height, width: of what is returned.
        mode: "area", "bilinear" or "bicubic".
    """
    corners = None if mode == "area" else False
    return interpolate(x[None], (height, width), mode=mode, align_corners=corners)[0]


def compressed(x: Tensor, quality: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Return a picture after JPEG of a random quality.

    Args:
        x: [C, H, W].
        quality: lowest and highest.
        draw: of the quality.
    """
    chosen = int(uniform(draw, quality[0], quality[1] + 1))
    return JPEG(chosen).on(tuple(x.shape)).A(2 * x.clamp(0, 1)[None] - 1)[0] / 2 + 0.5


def normal(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return normal numbers, like x.

    Args:
        x: any tensor.
        draw: of the numbers.
    """
    return torch.randn(x.shape, generator=draw, dtype=x.dtype)


def uniform(draw: torch.Generator, low: float, high: float) -> float:
    """Return a uniform number of [low, high).

    Args:
        draw: of the number.
        low, high: ends of the interval.
    """
    return low + (high - low) * float(torch.rand((), generator=draw, dtype=torch.float64))
