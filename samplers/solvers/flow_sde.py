"""The reverse SDE in t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.stages import Stage, add_stage

__all__ = ["FlowSDE"]


@dataclass(frozen=True)
class FlowSDE(Solver):
    """dx = (u + w eps / (2 sigma)) dt + sqrt(w) dW backwards in t, u the velocity: the SDE with the flow's marginals.

    SiT, Ma et al. 2024, eq. 5 and 7, whose score is -eps / sigma. w = `churn` sigma(t) sigma(t1) / t1: on flow, and on
    EDM, that is SiT's w = sigma(t); on trig it is SiT's own for its time t / t1. The noise depends neither on the unit
    of t nor on that of x: alike on all paths. The last step, to t = 0, is the prediction of x0, without noise.

    Attributes:
        method: Euler-Maruyama, weak order 1, or Heun's rule with the step's one noise in both stages, weak order 2.
        churn: factor on w; 0 is the ODE.
    """

    method: Literal["euler", "heun"] = "euler"
    churn: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, churn="[0, inf)")

    @property
    def order(self) -> int | None:
        return None if self.churn else 1 + (self.method == "heun")

    def nfe(self, steps: int) -> int:
        return 2 * steps - 1 if self.method == "heun" else steps

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        pred = f(x, t)
        out = path.interpolate(pred, s)
        if s == 0:
            return out, None
        top = torch.tensor(path.t1, dtype=torch.float64)
        drift = self.churn * float(path.sigma(top) * (t - s)) / (2 * path.t1)  # w / (2 sigma) times the step
        if self.churn:
            spread = math.sqrt(2 * drift * float(path.sigma((t + s) / 2)))
            out = torch.add(torch.add(out, pred.eps, alpha=-drift), noise(), alpha=spread)
        if self.method == "euler":
            return out, None
        here, there = Stage.of(path, x, pred, t), Stage.of(path, out, f(out, s), s)
        da, ds = float(path.alpha(s) - path.alpha(t)), float(path.sigma(s) - path.sigma(t))
        return add_stage(out, here, there, da / 2, (ds - drift) / 2), None
