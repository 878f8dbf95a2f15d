"""Decompositions: x as a pyramid of stages, coarse to fine, each of which flows at a time of its own.

Decomposable flow matching (Haji-Ali et al. 2025, arXiv 2506.19839), in the terms of this package:

- The state of the loop is all stages in one flat tensor, so solvers, guides and caches see an x like any other.
- A sampler leads the stages along one monotone path of (t_1, ..., t_S). The clock t of that path is the coarsest
  stage's own time: gen.diffusion.path.Staged is the flow path with the other stages' times as functions of it.
- The network gets, for each stage, its time and the speed at which that moves with the clock, [B, S, 2], and returns
  dx/dt by the clock; speed 0 is a stage that has not begun. Training draws the times and has speeds of 0 and 1.
- So the pair (x0, eps) of a denoiser is the straight line through x with the flow's velocity. It is E[x0 | x] itself
  for the coarsest stage always, and for all of them in the last phase; every rule for the ODE keeps its order.
- Where a stage begins, its velocity jumps: these times are `knots`, which a grid must have (grid `phases`); the loop
  evaluates a step on its own side of them, and multistep rules begin afresh behind them.
- Rules that add noise have one noise level for all of x, which stages at several times do not have: they are refused.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["Cosine", "Decomposition", "Haar", "Laplacian", "pack", "unpack"]


@dataclass(frozen=True)
class Decomposition:
    """A pyramid X_1 = down(x), X_s = down_s(x) - up(down_(s-1)(x)), whose upsampled sum is x again.

    A class of one's own has `down` and `up`, or overrides `shapes`, `decompose` and `recompose`, which are all that is
    used.

    Attributes:
        stages: S, the number of scales; each has half the sides of the next.
    """

    stages: int = 2

    def __post_init__(self) -> None:
        check_fields(self, stages="[1, 8]")

    def down(self, x: Tensor) -> Tensor:
        """Return x [B, C, H, W] at half its sides, a constant staying what it is."""
        raise NotImplementedError

    def up(self, x: Tensor) -> Tensor:
        """Return x [B, C, H, W] at twice its sides, a constant staying what it is."""
        raise NotImplementedError

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shapes of the stages, coarsest first.

        Args:
            shape: (C, H, W) of one x.

        Raises:
            UserError: for sides that cannot be halved so often.
        """
        channels, height, width = shape
        factor = 2 ** (self.stages - 1)
        if height % factor or width % factor:
            name = f"{type(self).__name__}: {self.stages} stages of {height} x {width}"
            raise UserError(f"{name}: sides must be multiples of {factor}")
        return [(channels, height // k, width // k) for k in (2**i for i in reversed(range(self.stages)))]

    def decompose(self, x: Tensor) -> list[Tensor]:
        """Return the stages of x [B, C, H, W], coarsest first."""
        scales = [x]
        for _ in range(self.stages - 1):
            scales.append(self.down(scales[-1]))
        scales.reverse()
        return [scales[0], *(fine - self.up(coarse) for coarse, fine in itertools.pairwise(scales))]

    def recompose(self, parts: Sequence[Tensor]) -> Tensor:
        """Return x [B, C, H, W] of its stages, coarsest first."""
        x = parts[0]
        for part in parts[1:]:
            x = part + self.up(x)
        return x


@dataclass(frozen=True)
class Laplacian(Decomposition):
    """Bilinear halving, which is the mean of 2 x 2, and bilinear doubling: the paper's own (Burt & Adelson 1983)."""

    def down(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2)

    def up(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Haar(Decomposition):
    """The mean of 2 x 2, and each number four times: the finer stages are the details of Haar's wavelets (the DWT)."""

    def down(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2)

    def up(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode="nearest")


@dataclass(frozen=True)
class Cosine(Decomposition):
    """The lower half of the frequencies of the discrete cosine transform, on a grid of half the sides (the DCT)."""

    def down(self, x: Tensor) -> Tensor:
        rows, columns = (_low_pass(side, x.dtype, x.device) for side in x.shape[2:])
        return rows @ x @ columns.mT

    def up(self, x: Tensor) -> Tensor:
        rows, columns = (2 * _low_pass(2 * side, x.dtype, x.device).mT for side in x.shape[2:])
        return rows @ x @ columns.mT


@functools.lru_cache(maxsize=32)
def _low_pass(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The lower n / 2 of n frequencies as n / 2 points, [n / 2, n]."""
    half = _cosines(n // 2).mT @ _cosines(n)[: n // 2] / math.sqrt(2)
    return half.to(device=device, dtype=dtype)


def _cosines(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 [frequency, point]."""
    k = torch.arange(n, dtype=torch.float64)
    table = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    table[0] /= math.sqrt(2)
    return table


def pack(parts: Sequence[Tensor]) -> Tensor:
    """Return stages as one state [B, D].

    Args:
        parts: [B, ...] each.
    """
    return torch.cat([part.flatten(1) for part in parts], 1)


def unpack(x: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the stages of a state.

    Args:
        x: [B, D].
        shapes: of the stages, as of `Decomposition.shapes`.
    """
    parts = x.split([math.prod(shape) for shape in shapes], 1)
    return [part.reshape(len(x), *shape) for part, shape in zip(parts, shapes, strict=True)]
