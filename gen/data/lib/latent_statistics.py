"""Mean and variance of latents, per position and per channel: exact sums in float64 that shards add up in one order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

__all__ = ["LatentSums"]


@dataclass(frozen=True, eq=False)
class LatentSums:
    """Count, mean and sum of squared deviations of latents.

    Where latents have a distribution, each stands for all of its draws: the variance of a draw is that of the means
    plus the mean of the variances.

    Attributes:
        count: number of latents.
        mean: float64 [C, H, W].
        deviations: sum of squared deviations from the mean, float64 [C, H, W].
    """

    count: int
    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, mean: Tensor, logvar: Tensor | None = None) -> LatentSums:
        """Return the sums of a batch.

        Args:
            mean: the latents, or the means of their distributions, [B, C, H, W]; B may be 0.
            logvar: log of their variances; None for latents without a distribution.
        """
        x = mean.double()
        centre = x.sum(0) / max(len(x), 1)
        deviations = ((x - centre) ** 2).sum(0)
        return cls(len(x), centre, deviations if logvar is None else deviations + logvar.double().exp().sum(0))

    @classmethod
    def total(cls, parts: Iterable[LatentSums]) -> LatentSums:
        """Return the sums of all parts, added from the first to the last.

        Args:
            parts: at least one.
        """
        return reduce(LatentSums._plus, parts)

    def _plus(self, other: LatentSums) -> LatentSums:
        """Add by Chan, Golub & LeVeque 1979, equation 2.1, which cancels no digits."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = step**2 * (self.count * other.count / count)
        return LatentSums(count, mean, self.deviations + other.deviations + between)

    @property
    def position_var(self) -> Tensor:
        """Variance of each number over the latents, float64 [C, H, W]."""
        return self.deviations / max(self.count, 1)

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each channel over latents and positions, float64 [C]."""
        return self.mean.mean((1, 2))

    @property
    def channel_var(self) -> Tensor:
        """Variance of each channel over latents and positions, float64 [C]."""
        between = (self.mean - self.channel_mean[:, None, None]) ** 2
        return (self.position_var + between).mean((1, 2))

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, which `from_tensors` reads."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "deviations": self.deviations}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LatentSums:
        """Return the sums of `tensors`."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["deviations"])
