"""A curriculum over noise levels: the noisiest first, cleaner ones as the loss stops falling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import NoisePath
from gen.diffusion.times import Times, Uniform
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["Curriculum", "Late", "Pace"]

TAILS = 1e-3  # of a density, beyond which its log-SNR may be infinite


@dataclass(frozen=True)
class Curriculum(Denoising):
    """Denoising that begins with the easiest noise levels and adds harder ones (Kim et al. 2024, arXiv 2403.10348).

    `times` is cut into `clusters`; stage k trains the k noisiest, with the density that times has there, and the last
    stage is plain Denoising, to the bit. by: "share" cuts into equal shares of the density, "log_snr" into equal widths
    of log-SNR between its outermost thousandths. A stage ends when the running mean of the loss, which keeps
    `smoothing` of itself at each step, has not fallen below its lowest for `patience` steps, or after `longest` steps.
    The stage is logged and lives in the role "curriculum". Validation is on all noise levels from the start.
    """

    clusters: int = 20
    by: Literal["share", "log_snr"] = "share"
    patience: int = 200
    longest: int | None = None
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clusters", "patience", "longest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"Curriculum: {name} = {value}; it must be at least 1")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"Curriculum: smoothing = {self.smoothing}; it must be in [0, 1)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {**super().roles(net, teacher), "curriculum": Pace()}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        stage = int(roles["curriculum"].net.stage)
        times = self.stage_times(stage, roles["net"].path)
        for role, loss, logs in Denoising(times, self.weighting, self.class_dropout)(roles, batch):
            yield role, loss, {**logs, "stage": torch.tensor(float(stage), device=loss.device)}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Takes a step's loss into account."""
        pace: Pace = roles["curriculum"].net
        if int(pace.stage) < self.clusters:
            pace.advance(logs["loss"], self.smoothing, self.patience, self.longest or math.inf)

    def stage_times(self, stage: int, path: NoisePath) -> Times:
        """The density of stage 1, 2, ..., clusters; from the last on it is `times` itself."""
        everything: Times = self.times
        if stage >= self.clusters:
            return everything
        if (stage, path) not in self._starts:
            share = 1 - stage / self.clusters
            self._starts[stage, path] = share if self.by == "share" else _log_snr_start(everything, path, share)
        return Late(everything, self._starts[stage, path])

    @cached_property
    def _starts(self) -> dict[tuple[int, NoisePath], float]:
        return {}


@dataclass(frozen=True)
class Late(Times):
    """The noisiest 1 - start of another density, by share: it begins at that one's quantile `start`."""

    inner: Any = part("diffusion.times", default=Uniform())
    start: float = 0.0

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return self.inner.at(1 - (1 - self.start) * (1 - u), path)


class Pace(nn.Module):
    """The memory of a curriculum: its stage, and since the stage began the steps, the mean loss and its lowest."""

    stage: Tensor
    seen: Tensor
    waited: Tensor
    mean: Tensor
    lowest: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("stage", "seen", "waited"):
            self.register_buffer(name, torch.tensor(int(name == "stage")))
        for name in ("mean", "lowest"):
            self.register_buffer(name, torch.tensor(0.0, dtype=torch.float64))

    def advance(self, loss: float, smoothing: float, patience: float, longest: float) -> None:
        """One observation; a new stage forgets the old one's."""
        first = int(self.seen) == 0
        mean = loss if first else smoothing * float(self.mean) + (1 - smoothing) * loss
        better = first or mean < float(self.lowest)
        self.mean.fill_(mean)
        self.lowest.fill_(mean if better else float(self.lowest))
        self.seen += 1
        self.waited.fill_(0 if better else int(self.waited) + 1)
        if int(self.waited) >= patience or int(self.seen) >= longest:
            self.stage += 1
            self.seen.zero_()
            self.waited.zero_()


def _log_snr_start(times: Times, path: NoisePath, share: float) -> float:
    """The quantile of the density that lies, in log-SNR, `share` of the way from its cleanest to its noisiest."""

    def lam(u: float) -> float:
        return float(path.lam(times.at(torch.tensor(u, dtype=torch.float64), path)))

    clean, noisy = lam(TAILS), lam(1 - TAILS)
    edge, low, high = clean + share * (noisy - clean), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lam(middle) > edge else (low, middle)
    return high
