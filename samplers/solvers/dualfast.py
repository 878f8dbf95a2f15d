"""DualFast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.solvers.ddim import DDIM

__all__ = ["DualFast"]


class State(NamedTuple):
    """The inner solver's state, and the first prediction of the last step."""

    inner: Any
    before: Prediction | None = None


@dataclass(frozen=True)
class DualFast(Solver):
    """Another solver against the network's own error rather than the solver's (DualFast, Yu et al. 2025, section 3).

    Its first-order term has (1 + c_t) p(x_t) - c_t p(x_r) for p(x_t), r the time of the step before. It helps where
    predictions at higher noise err in the same direction and by more; with an exact denoiser it only lowers the order,
    to 1. No evaluation is added.

    Attributes:
        solver: any; the higher terms of dpmpp, unipc and the like stay as they are.
        c: the factor at no noise.
        power: of the schedule c_t = c (alpha / (alpha + sigma))^power; it is ours, the published one was not at hand.
        of: p is "eps" or "x0".
    """

    solver: Solver = part("samplers.solvers", default=DDIM())
    c: float = 0.5
    power: float = 1.0
    of: Literal["eps", "x0"] = "eps"

    def __post_init__(self) -> None:
        check_fields(self, power="[0, inf)")

    @property
    def order(self) -> int | None:
        return self.solver.order if self.c == 0 or self.solver.order is None else 1

    def nfe(self, steps: int) -> int | None:
        return self.solver.nfe(steps)

    def init(self) -> State:
        return State(self.solver.init())

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: DrawNoise
    ) -> tuple[Tensor, State]:
        predictions: list[Prediction] = []

        def recording(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
            pred = f(x, t, s=s)
            predictions.append(pred)
            return pred

        out, inner = self.solver.step(recording, path, x, t, s, state.inner, noise)
        here = predictions[0]
        if state.before is not None and self.c:
            alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
            alpha_s, sigma_s = float(path.alpha(s)), float(path.sigma(s))
            c = self.c * (alpha / (alpha + sigma)) ** self.power
            if self.of == "eps":  # x0 follows from x = alpha x0 + sigma eps, and so moves by -sigma / alpha
                gap, share = here.eps - state.before.eps, sigma_s - alpha_s * sigma / alpha
            else:
                gap, share = here.x0 - state.before.x0, alpha_s - sigma_s * alpha / sigma
            out = torch.add(out, gap, alpha=c * share)
        return out, State(inner, here)
