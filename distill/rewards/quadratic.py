"""A reward under which the best policy for Gaussian data is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond

__all__ = ["Quadratic"]


@dataclass(frozen=True)
class Quadratic:
    """The reward slope sum(x) - curvature / 2 sum((x - target)^2) of any data, for exact worlds and first trials.

    The distribution that maximises E[reward] - strength KL(. | p) is p exp(reward / strength): where p is a Gaussian so
    is it, see `tilted`.

    Attributes:
        target: the best value of every number.
        curvature: at least 0; with 0 the reward has no maximum, as a reward that can be hacked has none.
        slope: reward per unit.
    """

    target: float = 0.0
    curvature: float = 1.0
    slope: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, curvature="[0, inf)")

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        x = x.detach().double().flatten(1)
        return (self.slope * x - self.curvature / 2 * (x - self.target) ** 2).sum(1)

    def features(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)

    def tilted(self, mean: Tensor, std: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the best policy for data N(mean, std^2), each dimension by itself."""
        precision = std**-2 + self.curvature / strength
        pull = mean / std**2 + (self.slope + self.curvature * self.target) / strength
        return pull / precision, precision.rsqrt()
