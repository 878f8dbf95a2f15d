"""Guidance by the posterior's own covariance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.operators.lib.operator import Operator
from gen.operators.lib.solve import conjugate_gradients
from gen.samplers.restore.lib.measured import MeasuredLoop, Pull, with_likelihood

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(MeasuredLoop):
    """The likelihood N(A x0, A C A' + noise^2) with C = sigma^2 / alpha J, the covariance of x0 given x_t.

    J is the derivative of the network's x0, by one product with it for each iteration (moment matching: Rozet et al.
    2024, TMPD). Exact for Gaussian data, by any solver.

    Attributes:
        noise, solver, steps, grid: as of gen.samplers.restore.lib.measured.MeasuredLoop.
        iterations: of conjugate gradients.
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, iterations="[1, inf)")

    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        scale = expand(path.sigma(t) ** 2 / path.alpha(t), x)

        def covariance(v: Tensor) -> Tensor:
            return operator.A(scale * pull(operator.At(v))) + self.noise**2 * v

        wrong = conjugate_gradients(covariance, y - operator.A(pred.x0), steps=self.iterations)
        return with_likelihood(path, pred, t, pull(operator.At(wrong)))
