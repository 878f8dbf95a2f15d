"""What a sampling loop will need is known before it starts: its times, and so all that depends on time and class alone.

A loop with a free denoiser in place of the network shows at which times it will evaluate. An engine's network
(gen.models.engines) then computes its modulations of all of them in one product, and its weights for those, a third of
a DiT's, are read once per loop and not once per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap

__all__ = ["evaluation_times", "precompute_modulations"]


class Free:
    """A denoiser that costs nothing and keeps the times it was asked about."""

    def __init__(self, path: NoisePath):
        self.path = path
        self.asked: list[float] = []

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        self.asked += t.flatten().tolist()
        return Prediction(x, torch.zeros_like(x))

    def null(self, cond: Cond) -> Cond:
        return cond


def evaluation_times(path: NoisePath, grid: Tensor | Sequence[float], solver: Solver, ndim: int = 2) -> list[float]:
    """The distinct times at which a loop over an x of so many dimensions evaluates, falling.

    Where the data decide, those of a trivial case.
    """
    free = Free(path)
    integrate(free, torch.zeros((1,) * ndim), grid, solver, noise=Noise((0,)))
    return sorted(set(free.asked), reverse=True)


@dataclass(frozen=True, eq=False)
class PrecomputedDenoiser(Denoiser):
    """A denoiser with its modulations at some times at hand; at others it computes them."""

    table: Any
    places: dict[float, int]

    def output(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        place = self.places.get(float(t)) if t.ndim == 0 and t.device.type == "cpu" else None
        about = cond if place is None else self.table(place, cond or {})
        return super().output(x, t, about, s=s, tap=tap)


def precompute_modulations(
    f: DenoiserLike, grid: Tensor | Sequence[float], solver: Solver, cond: Cond, like: Tensor
) -> DenoiserLike:
    """f with what it can compute in advance for a loop of this solver; f itself where its network foresees nothing.

    At the times that are foreseen no embedding of time is computed, and taps meet no site "time".

    cond: the loop's condition, x's mapping of tensors. like: x, for its device and dtype.
    """
    make_table = members(f.net).modulation_table if isinstance(f, Denoiser) else None
    if not isinstance(f, Denoiser) or make_table is None:
        return f
    times = evaluation_times(f.path, grid, solver, like.ndim)
    t = torch.tensor(times, dtype=torch.float64)
    table = make_table(f.t_to_network(t, like.new_empty(len(times), 1)), cond)
    if table is None:
        return f
    return PrecomputedDenoiser(f.net, f.path, f.parameterisation, table, {time: i for i, time in enumerate(times)})
