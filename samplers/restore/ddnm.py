"""Range and null space: what is measured is put in, the rest is generated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.contracts import Solver
from gen.diffusion.path import NoisePath, Prediction
from gen.operators.lib.operator import Operator
from gen.samplers.restore.lib.measured import MeasuredLoop, Pull
from gen.samplers.solvers.renoise import Renoise

__all__ = ["DDNM"]


@dataclass(frozen=True)
class DDNM(MeasuredLoop):
    """x0 + A+ (y - A x0) for x0, eps as it is: without noise A x = y to rounding (Wang et al. 2022, DDNM).

    Attributes:
        noise: must be 0.
        solver: default the published rule, a share 0.85 of fresh noise at every step, which leaves .76 of the variance
            of what is not measured; ancestral sampling and rules for the ODE leave all of it.
        steps, grid: as of gen.samplers.restore.lib.measured.MeasuredLoop.
    """

    solver: Solver = part("samplers.solvers", default=Renoise(0.85))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise:
            raise UserError(f"DDNM: noise = {self.noise}; it takes measurements without noise: take pigdm or ddrm")

    @property
    def differentiates(self) -> bool:
        return False

    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        return pred.replace(pred.x0 + operator.pinv(y - operator.A(pred.x0)), pred.eps)
