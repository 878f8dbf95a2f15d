"""Points of a mixture of Gaussians: data whose exact denoiser is known, opened like pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.data.lib.tensors import Tensors, content_hash, split_indices
from gen.diffusion.noise import derive
from gen.diffusion.path import NoisePath
from gen.diffusion.worlds import Mixture

__all__ = ["MixturePoints"]


@dataclass(frozen=True)
class MixturePoints:
    """Points of a mixture of Gaussians with means on a circle (dim 2) or a line (dim 1).

    A fifth of the points is held out. An item's x is [dim, 1, 1].

    Attributes:
        dim: 1 or 2.
        modes: number of Gaussians.
        std: standard deviation of each.
        radius: of the circle; on the line the means run from -radius to radius.
        uneven: True gives mode k a weight proportional to k + 1, False equal weights.
        labels: True gives each point its mode as its class.
        n: number of points, "train" and "test" together.
    """

    pictures = False

    dim: int = 2
    modes: int = 8
    std: float = 0.1
    radius: float = 1.0
    uneven: bool = False
    labels: bool = False
    n: int = 10_000

    def __post_init__(self) -> None:
        check_fields(self, dim="[1, inf)", modes="[1, inf)", std="[0, inf)", n="[2, inf)")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.dim, 1, 1)

    @property
    def classes(self) -> int:
        return self.modes if self.labels else 0

    def world(self, path: NoisePath) -> Mixture:
        """Return the exact denoiser of these data on a path, in float64."""
        k = torch.arange(self.modes, dtype=torch.float64)
        if self.dim == 1:
            means = torch.linspace(-self.radius, self.radius, self.modes, dtype=torch.float64)[:, None]
        else:
            angle = 2 * math.pi * k / self.modes
            means = self.radius * torch.stack([angle.cos(), angle.sin()], 1)
        weights = k + 1 if self.uneven else torch.ones_like(k)
        return Mixture(path, means, torch.full_like(k, self.std), weights / weights.sum(), k.long())

    def open(self, split: str) -> Tensors:
        """Open "train" or "test"."""
        from gen.diffusion.path import Flow

        generator = torch.Generator().manual_seed(derive("mixture", 0))
        x, y = self.world(Flow()).sample(self.n, generator)
        rows = split_indices(split, self.n, self.n // 5)
        x, y = x[rows].float()[..., None, None], y[rows]
        labels = y if self.labels else None
        return Tensors(x, labels, content_hash("mixture", x, y))
