"""Diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.operators.lib.operator import Operator
from gen.samplers.restore.lib.measured import After, MeasuredLoop, Moved, Pull, with_likelihood

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS(MeasuredLoop):
    """The likelihood of y as if x0 were known to be x0(x_t): N(A x0(x_t), spread^2) (Chung et al. 2023).

    It is biased, however many steps there are: for one number of variance v and c = v / noise^2 the mean goes the share
    1 - exp(-c) of the way, instead of c / (1 + c), with ancestral sampling.

    Attributes:
        noise, solver, steps, grid: as of gen.samplers.restore.lib.measured.MeasuredLoop.
        spread: "noise", its own; "annealed", noise^2 + (sigma / alpha)^2; "norm", the published rule: `rate` times the
            gradient of |y - A x0(x_t)| moves x after a step of the unguided prediction, whatever the noise.
        rate: of "norm"; 0.3 for blurs and downsampling, 0.5 for inpainting as published, with 1000 steps.
    """

    spread: Literal["noise", "annealed", "norm"] = "norm"
    rate: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, rate="[0, inf)")

    def rules(self) -> tuple[Moved, After | None]:
        if self.spread == "noise" and not self.noise:
            raise UserError("DPS: spread = 'noise' divides by it, and noise is 0: take another spread, or ddnm")
        if self.spread != "norm":
            return self.moved, None
        moves: list[Tensor] = []  # of the step's evaluations

        def noted(
            path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
        ) -> Prediction:
            wrong = y - operator.A(pred.x0)
            size = wrong.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
            moves.append(self.rate * pull(operator.vjp(pred.x0, wrong)) / expand(size, x))
            return pred

        def after(step: int, s: Tensor, x: Tensor) -> Tensor:
            move = moves[0]
            moves.clear()
            return x + move

        return noted, after

    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        wrong = y - operator.A(pred.x0)
        variance = self.noise**2 + (0 if self.spread == "noise" else float(path.sigma(t) / path.alpha(t)) ** 2)
        return with_likelihood(path, pred, t, pull(operator.vjp(pred.x0, wrong)) / variance)
