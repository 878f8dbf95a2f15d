"""A reference trajectory: the distance of few steps' end from that of many is the cheap fitness of a grid."""

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

__all__ = ["ReferenceTrajectory"]


@dataclass(frozen=True, eq=False)
class ReferenceTrajectory:
    """The trajectory of fine steps through the times of a pool, and a solver to compare with it.

    Attributes:
        denoiser: the denoiser of a loop on a grid, guided or not.
        solver: that is compared.
        pool: falling times [M].
        points: the trajectory at them, [M, B, ...].
        cond: tensors [B, ...].
        noise: for a stochastic solver.
        sites: the blocks that a mask may leave out, in its order.
    """

    denoiser: Callable[[Tensor], DenoiserLike]
    solver: Solver
    pool: Tensor
    points: Tensor
    cond: Cond | None = None
    noise: Noise | None = None
    sites: Sequence[str] = ()

    @staticmethod
    @torch.no_grad()
    def trace(
        denoiser: Callable[[Tensor], DenoiserLike], x: Tensor, pool: Tensor, cond: Cond | None, fine: int = 4
    ) -> Tensor:
        """Return the points from x [B, ...] at pool[0] on, by Heun's rule, `fine` steps from each time to the next."""
        parts = torch.arange(fine, dtype=torch.float64) / fine
        between = [t + (s - t) * parts for t, s in itertools.pairwise(pool)]
        times, points = torch.cat([*between, pool[-1:]]), [x]

        def watch(i: int, t: Tensor, x: Tensor) -> None:
            if (i + 1) % fine == 0:
                points.append(x)

        integrate(denoiser(times), x, times, Heun(), cond=cond, watch=watch)
        return torch.stack(points)

    @torch.no_grad()
    def fitness(self, times: Tensor, mask: Tensor | None = None) -> float:
        """Return the root mean square distance from the end of the reference, in the units of x."""
        tap = None if mask is None else SkipSession(tuple(map(tuple, mask.tolist())), tuple(self.sites))
        f = self.denoiser(times)
        x = integrate(f, self.points[0], times, self.solver, cond=self.cond, noise=self.noise, tap=tap)
        return float((x - self.points[-1]).double().square().mean().sqrt())

    @torch.no_grad()
    def costs(self) -> Tensor:
        """Return the distance of one step of the solver from points[i] to points[j], float64 [M, M].

        Each is a loop's first step, so a multistep rule is measured at its start-up. Not a step: infinite.
        """
        f, m = self.denoiser(self.pool), len(self.pool)
        costs = torch.full((m, m), torch.inf, dtype=torch.float64)
        for i in range(m - 1):
            here, t = self.points[i], self.pool[i]
            first = f(here, t, self.cond)

            def evaluate(
                x: Tensor, t: Tensor, *, s: Tensor | None = None, here: Tensor = here, first: Prediction = first
            ) -> Prediction:
                return first if x is here and s is None else f(x, t, self.cond, s=s)

            for j in range(i + 1, m):
                noise = torch.zeros_like(here).clone
                x, _ = self.solver.step(evaluate, f.path, here, t, self.pool[j], self.solver.init(), noise)
                costs[i, j] = (x - self.points[j]).double().square().mean().sqrt()
        return costs
