"""DPM-Solver++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.path import Path
from gen.sample import Evaluate

__all__ = ["DPMpp"]

State = tuple[Tensor, Tensor] | None  # the previous x0 and its half log-SNR


@dataclass(frozen=True)
class DPMpp:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2): the exponential integrator of x0 in log-SNR.

    The first step, and any step from or to an infinite log-SNR, is first order.
    """

    order: ClassVar[int] = 2

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> State:
        return None

    def step(
        self, f: Evaluate, path: Path, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        x0 = f(x, t).x0
        lam, guess = path.lam(t), x0
        if state is not None and s > 0:
            before, lam_before = state
            ratio = (path.lam(s) - lam) / (lam - lam_before)  # 0 after a start from infinite noise
            guess = x0 + float(ratio) / 2 * (x0 - before)
        keep = path.sigma(s) / path.sigma(t)
        return keep * x + (path.alpha(s) - path.alpha(t) * keep) * guess, (x0, lam)
