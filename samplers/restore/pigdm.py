"""Pseudo-inverse guidance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction
from gen.operators.lib.operator import Operator
from gen.samplers.restore.lib.measured import MeasuredLoop, Pull, with_likelihood

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM(MeasuredLoop):
    """The likelihood N(A x0, r^2 A A' + noise^2), as if x0 were N(x0(x_t), r^2) (Song et al. 2023, PiGDM).

    r^2 = v sigma^2 / (v alpha^2 + sigma^2), which is exact for data of covariance v.

    Attributes:
        noise, solver, steps, grid: as of gen.samplers.restore.lib.measured.MeasuredLoop.
        variance: v, of a number of the data; 1 as published, about 0.5 for digits in [-1, 1].
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, variance="(0, inf)")

    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        alpha, sigma = path.alpha(t), path.sigma(t)
        r2 = self.variance * sigma**2 / (self.variance * alpha**2 + sigma**2)
        wrong = operator.solve(y - operator.A(pred.x0), self.noise, r2)
        return with_likelihood(path, pred, t, pull(operator.At(wrong)))
