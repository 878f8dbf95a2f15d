"""How far few steps end from where many steps would: the cheap fitness of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import Prediction
from gen.diffusion.sampling import integrate
from gen.samplers.caches.searched import SkipSession
from gen.samplers.solvers.heun import Heun

__all__ = ["Reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The trajectory of fine steps through the times of a pool, points [M, B, ...]; and a solver to compare with it.

    walk(times) is the denoiser on that grid, guided or not. sites: the blocks that a mask may leave out, in its order.
    """

    walk: Callable[[Tensor], DenoiserLike]
    solver: Solver
    pool: Tensor
    points: Tensor
    cond: Cond | None = None
    noise: Noise | None = None
    sites: Sequence[str] = ()

    @staticmethod
    @torch.no_grad()
    def trace(
        walk: Callable[[Tensor], DenoiserLike], x: Tensor, pool: Tensor, cond: Cond | None, fine: int = 4
    ) -> Tensor:
        """x [B, ...] at pool[0] carried through the pool by Heun's rule, in `fine` steps from each time to the next."""
        parts = torch.arange(fine, dtype=torch.float64) / fine
        between = [t + (s - t) * parts for t, s in itertools.pairwise(pool)]
        times, points = torch.cat([*between, pool[-1:]]), [x]

        def watch(i: int, t: Tensor, x: Tensor) -> None:
            if (i + 1) % fine == 0:
                points.append(x)

        integrate(walk(times), x, times, Heun(), cond=cond, watch=watch)
        return torch.stack(points)

    @torch.no_grad()
    def fitness(self, times: Tensor, mask: Tensor | None = None) -> float:
        """Root mean square distance from the end of the reference, in the units of x."""
        tap = None if mask is None else SkipSession(tuple(map(tuple, mask.tolist())), tuple(self.sites))
        x = integrate(self.walk(times), self.points[0], times, self.solver, cond=self.cond, noise=self.noise, tap=tap)
        return float((x - self.points[-1]).double().square().mean().sqrt())

    @torch.no_grad()
    def costs(self) -> Tensor:
        """float64 [M, M]: how far one step of the solver from the reference at pool[i] ends from it at pool[j].

        Each is a walk's first step, so a multistep rule is measured at its start-up. Not a step: infinite.
        """
        f, m = self.walk(self.pool), len(self.pool)
        costs = torch.full((m, m), torch.inf, dtype=torch.float64)
        for i in range(m - 1):
            here, t = self.points[i], self.pool[i]
            known = f(here, t, self.cond)

            def evaluate(
                x: Tensor, t: Tensor, *, s: Tensor | None = None, here: Tensor = here, known: Prediction = known
            ) -> Prediction:
                return known if x is here and s is None else f(x, t, self.cond, s=s)

            for j in range(i + 1, m):
                noise = torch.zeros_like(here).clone
                x, _ = self.solver.step(evaluate, f.path, here, t, self.pool[j], self.solver.init(), noise)
                costs[i, j] = (x - self.points[j]).double().square().mean().sqrt()
        return costs
