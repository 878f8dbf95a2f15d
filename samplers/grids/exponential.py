"""Even log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Exponential"]


@dataclass(frozen=True)
class Exponential:
    """log(sigma / alpha) falls evenly, then sigma to 0: the "logSNR" grid of DPM-Solver (Lu et al. 2022, section 3).

    Attributes:
        sigma_min: the last sigma / alpha before 0.
        sigma_max: the first, at most that of the path's own end.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_fields(self, sigma_min="(0, inf)", sigma_max="(sigma_min, inf)")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        t1 = torch.tensor(path.t1, dtype=torch.float64)
        top = min(self.sigma_max, float(path.sigma(t1) / path.alpha(t1)))  # at most the path's own
        if not top > self.sigma_min:
            raise UserError(
                f"Exponential: sigma_min = {self.sigma_min}; it must be below this path's top level, {top:g}"
            )
        lam = torch.linspace(-math.log(top), -math.log(self.sigma_min), steps, dtype=torch.float64)
        return torch.cat([path.t_from_lambda(lam).clamp(max=path.t1), torch.zeros(1, dtype=torch.float64)])
