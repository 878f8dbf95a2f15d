"""Parallel-beam tomography: line integrals of a picture under some angles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.operator import Operator, spatial

__all__ = ["Radon", "Tomography"]


@dataclass(frozen=True)
class Radon:
    """Parallel-beam projections of a square or oblong picture: y is [C, views, detectors].

    Exact for a picture of constant square pixels: a detector's value is the mean of the line integrals over its width,
    one pixel. The adjoint is that of the same matrix.

    Attributes:
        views: number of angles, evenly over the arc, whose end is left out.
        arc: degrees; below 180 is a limited angle.
        start: the first angle, degrees; at 0 a projection sums columns, at 90 rows.
        detectors: how many; None for as many as the diagonal needs.
    """

    views: int = 30
    arc: float = 180.0
    start: float = 0.0
    detectors: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, views="[1, 100000]", arc="(0, 360]", detectors="[1, 1000000]")

    def on(self, shape: tuple[int, ...]) -> Tomography:
        """Return the operator on samples [C, H, W]."""
        sizes = spatial(shape)
        if len(sizes) != 2:
            raise UserError(f"Radon: it is of pictures [C, H, W], not of {list(shape)}")
        degrees = self.start + self.arc * torch.arange(self.views, dtype=torch.float64) / self.views
        return Tomography(shape, degrees.deg2rad(), self.detectors or math.ceil(math.hypot(*sizes)))


class Tomography(Operator):
    """Parallel-beam projections under given angles, by a sparse matrix.

    Args:
        shape: of one sample, [C, H, W].
        angles: radians [views]; the evenly spaced ones of `fbp` divide an arc.
        detectors: how many, one pixel wide, around the picture's centre.
    """

    def __init__(self, shape: tuple[int, ...], angles: Tensor, detectors: int) -> None:
        super().__init__(shape, (shape[0], len(angles), detectors))
        self.angles = angles.double()
        height, width = shape[-2:]
        right = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2).expand(height, width).flatten()
        up = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64))[:, None].expand(height, width).flatten()
        views = [_view(float(angle), right, up, detectors) for angle in self.angles]
        rows = torch.cat([row + i * detectors for i, (row, _, _) in enumerate(views)])
        index = torch.stack((rows, torch.cat([pixel for _, pixel, _ in views])))
        sizes = (len(angles) * detectors, height * width)
        weights = torch.cat([weight for _, _, weight in views])
        self.matrix = torch.sparse_coo_tensor(index, weights, sizes, check_invariants=True).coalesce()
        self.adjoint = self.matrix.t().coalesce()

    def A(self, x: Tensor) -> Tensor:
        return self._product("matrix", x).unflatten(-1, self.measured[1:])

    def At(self, y: Tensor) -> Tensor:
        return self._product("adjoint", y).unflatten(-1, self.shape[1:])

    def fbp(self, y: Tensor) -> Tensor:
        """Return the filtered back-projection, [B, *shape]: the band-limited ramp (Kak & Slaney 1988, eq. 3.61).

        Args:
            y: [B, *measured], the angles evenly spaced; of an arc of 180 degrees or a multiple it is an inverse.
        """
        views, detectors = self.measured[1:]
        n = 2 ** math.ceil(math.log2(2 * detectors))
        distance = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
        odd = torch.where(distance % 2 == 1, -1 / (math.pi * torch.where(distance == 0, 1, distance)) ** 2, 0)
        ramp = torch.fft.rfft(torch.where(distance == 0, 0.25, odd)).real.to(y)
        filtered = torch.fft.irfft(torch.fft.rfft(y, n) * ramp, n)[..., :detectors]
        step = float(self.angles[1] - self.angles[0]) if views > 1 else math.pi
        turns = max(round(step * views / math.pi), 1)  # how often each line is seen
        return self.At(filtered) * (step / turns)

    def _product(self, name: str, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1).flatten(1)  # [B C, numbers]
        return torch.sparse.mm(self.like(name, x), rows.mT).mT.unflatten(0, x.shape[:2])


def _view(angle: float, right: Tensor, up: Tensor, detectors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries of one angle: detector, pixel and weight, the share of the pixel that the detector sees."""
    a, b = sorted((abs(math.cos(angle)), abs(math.sin(angle))))
    position = right * math.cos(angle) + up * math.sin(angle) + detectors / 2  # of the pixel's centre, in detectors
    first = (position - (a + b) / 2).floor()
    edges = first[:, None] + torch.arange(4, dtype=torch.float64)  # a pixel is seen by at most three
    weights = _shadow(edges - position[:, None], a, b).diff(dim=1)
    detector = edges[:, :-1].long()
    keep = (weights > 0) & (detector >= 0) & (detector < detectors)
    pixel = torch.arange(len(position))[:, None].expand_as(detector)
    return detector[keep], pixel[keep], weights[keep]


def _shadow(u: Tensor, a: float, b: float) -> Tensor:
    """Return the share of a unit pixel on one side of a line at the distance u from its centre.

    a <= b are |cos| and |sin| of the line's direction, in either order: the shadow is the convolution of boxes of
    these widths.
    """
    if a < 1e-6:
        return ((u + b / 2) / b).clamp(0, 1)
    corners = [(1, (a + b) / 2), (-1, (b - a) / 2), (-1, (a - b) / 2), (1, -(a + b) / 2)]
    area = sum(sign * (u + shift).clamp(min=0) ** 2 for sign, shift in corners)
    return torch.as_tensor(area) / (2 * a * b)
