"""Modulations of all times of a sampling loop, computed before it starts.

A loop with a recording denoiser in place of the network shows at which times the solver evaluates. An engine's network
(gen.models.engines) then computes its modulations of all of them in one product, and its weights for those, a third of
a DiT's, are read once per loop and not once per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike, LearnedVariance
from gen.diffusion.net import ModulationTable, members
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap

__all__ = ["evaluation_times", "precompute_modulations"]


@dataclass
class RecordingDenoiser:
    """A denoiser without a network that records the times of its evaluations."""

    path: NoisePath
    times: list[float] = field(default_factory=list)

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        self.times += t.flatten().tolist()
        return LearnedVariance(x, torch.zeros_like(x), torch.zeros_like(x))

    def null(self, cond: Cond) -> Cond:
        return cond


def evaluation_times(path: NoisePath, grid: Tensor | Sequence[float], solver: Solver, ndim: int = 2) -> list[float]:
    """Return the distinct times at which a loop evaluates its denoiser, falling.

    Args:
        path: of the loop.
        grid: its N + 1 falling times.
        solver: where its times depend on the data, those of a trivial case are returned.
        ndim: dimensions of x, the batch among them.
    """
    recording = RecordingDenoiser(path)
    integrate(recording, torch.zeros((1,) * ndim), grid, solver, noise=Noise((0,)))
    return sorted(set(recording.times), reverse=True)


@dataclass(frozen=True, eq=False)
class PrecomputedDenoiser(Denoiser):
    """A denoiser with a table of its modulations at some times; at others it computes them."""

    table: ModulationTable
    index: dict[float, int]  # of the table's times

    def output(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        i = self.index.get(float(t)) if t.ndim == 0 and t.device.type == "cpu" else None
        return super().output(x, t, cond if i is None else self.table(i, cond or {}), s=s, tap=tap)


def precompute_modulations(
    f: DenoiserLike, grid: Tensor | Sequence[float], solver: Solver, cond: Cond, like: Tensor
) -> DenoiserLike:
    """Return f with its modulations at all times of a loop; f itself if its network has no table of them.

    At these times no embedding of time is computed, and taps meet no site "time".

    Args:
        f: the denoiser of the loop.
        grid: its N + 1 falling times.
        solver: decides at which times f is evaluated.
        cond: tensors [B, ...] of the batch.
        like: x of the batch, for its device, dtype and dimensions.
    """
    make_table = members(f.net).modulation_table if isinstance(f, Denoiser) else None
    if not isinstance(f, Denoiser) or make_table is None:
        return f
    times = evaluation_times(f.path, grid, solver, like.ndim)
    t = torch.tensor(times, dtype=torch.float64)
    table = make_table(f.t_to_network(t, like.new_empty(len(times), 1)), cond)
    if table is None:
        return f
    index = {time: i for i, time in enumerate(times)}
    return PrecomputedDenoiser(**vars(f), table=table, index=index)
