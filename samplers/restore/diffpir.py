"""Plug-and-play restoration: a proximal step for x0 at every evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Solver
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.operators.lib.operator import Operator
from gen.samplers.restore.lib.measured import MeasuredLoop, Pull
from gen.samplers.solvers.renoise import Renoise

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR(MeasuredLoop):
    """argmin |y - A x|^2 / 2 + rho |x - x0|^2 / 2 for x0, rho = weight noise^2 alpha^2 / sigma^2 (Zhu et al. 2023).

    eps follows, so that both still add up to x.

    Attributes:
        noise, steps, grid: as of gen.samplers.restore.lib.measured.MeasuredLoop.
        solver: default the published rule, a share zeta = 0.1 of fresh noise in every step's variance.
        weight: of the prior, lambda: 1 in the published script for downsampling, 3 to 25 in the paper.
    """

    solver: Solver = part("samplers.solvers", default=Renoise(0.1**0.5))
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, weight="(0, inf)")

    @property
    def differentiates(self) -> bool:
        return False

    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        alpha, sigma = path.alpha(t), path.sigma(t)
        x0 = operator.prox(pred.x0, y, self.weight * self.noise**2 * (alpha / sigma) ** 2)
        return pred.replace(x0, (x - expand(alpha, x) * x0) / expand(sigma, x))
