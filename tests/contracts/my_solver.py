"""A user's solver, outside gen: the midpoint rule."""

from dataclasses import dataclass
from typing import ClassVar

from gen.diffusion.contracts import Solver


@dataclass(frozen=True)
class MySolver(Solver):
    order: ClassVar[int] = 2

    def nfe(self, steps):
        return 2 * steps

    def step(self, f, path, x, t, s, state, noise):
        m = (t + s) / 2
        pred = f(path.interpolate(f(x, t), m), m)
        return path.advance(x, pred, t, s), state
