"""The grid of EDM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Karras"]


@dataclass(frozen=True)
class Karras:
    """sigma / alpha falls evenly in its 1 / rho-th power, then to 0 (Karras et al. 2022, eq. 5).

    Attributes:
        sigma_min: the last sigma / alpha before 0.
        sigma_max: the first, at most that of the path's own end.
        rho: larger for more steps at low noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_fields(self, sigma_min="(0, inf)", sigma_max="(sigma_min, inf)", rho="(0, inf)")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        t1 = torch.tensor(path.t1, dtype=torch.float64)
        top = min(self.sigma_max, float(path.sigma(t1) / path.alpha(t1)))  # at most the path's own
        if not top > self.sigma_min:
            raise UserError(f"Karras: sigma_min = {self.sigma_min}; it must be below this path's top level, {top:g}")
        ends = top ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma = torch.linspace(*ends, steps, dtype=torch.float64) ** self.rho
        return torch.cat([path.t_from_lambda(-sigma.log()).clamp(max=path.t1), torch.zeros(1, dtype=torch.float64)])
