"""A curriculum over noise levels: the noisiest first, cleaner ones as the loss stops falling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import NoisePath
from gen.diffusion.times import Times, Uniform
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["Curriculum", "CurriculumState", "TruncatedTimes"]

TAIL = 1e-3  # quantile beyond which a density's log-SNR may be infinite


@dataclass(frozen=True)
class Curriculum(Denoising):
    """Denoising that begins with the easiest noise levels and adds harder ones (Kim et al. 2024, arXiv 2403.10348).

    `times` is cut into clusters of noise levels. Stage k = 1, 2, ... trains the k noisiest, with the density that
    `times` has there; the last stage is plain Denoising, to the bit. A stage ends when the running mean of the loss has
    not fallen below its lowest for `patience` steps. The stage is logged, and saved in the role "curriculum".
    Validation is on all noise levels from the start.

    Attributes:
        times, weighting, class_dropout: see Denoising.
        clusters: number of stages; the paper's default.
        by: cut into equal shares of the density ("share") or into equal widths of log-SNR between the density's
            outermost thousandths ("log_snr").
        patience: steps without improvement that end a stage.
        longest: steps that end a stage in any case; None for no limit.
        smoothing: share of the running mean that stays at each step, in [0, 1).
    """

    clusters: int = 20
    by: Literal["share", "log_snr"] = "share"
    patience: int = 200
    longest: int | None = None
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, clusters="[1, inf)", patience="[1, inf)", longest="[1, inf)", smoothing="[0, 1)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {**super().roles(net, teacher), "curriculum": CurriculumState()}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        stage = int(roles["curriculum"].net.stage)
        times = self.stage_times(stage, roles["net"].path)
        for role, loss, logs in Denoising(times, self.weighting, self.class_dropout)(roles, batch):
            yield role, loss, {**logs, "stage": torch.tensor(float(stage), device=loss.device)}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Update the running mean with a step's loss; end the stage if it is due."""
        state: CurriculumState = roles["curriculum"].net
        if int(state.stage) < self.clusters:
            state.update(logs["loss"], self.smoothing, self.patience, self.longest or math.inf)

    def stage_times(self, stage: int, path: NoisePath) -> Times:
        """Return the density of stage 1, 2, ..., clusters; from the last on it is `times` itself."""
        if stage >= self.clusters:
            return self.times
        if (stage, path) not in self._starts:
            share = 1 - stage / self.clusters
            self._starts[stage, path] = share if self.by == "share" else _log_snr_quantile(self.times, path, share)
        return TruncatedTimes(self.times, self._starts[stage, path])

    @cached_property
    def _starts(self) -> dict[tuple[int, NoisePath], float]:
        return {}


@dataclass(frozen=True)
class TruncatedTimes(Times):
    """Another density cut off below one of its quantiles: its noisiest part, renormalised.

    Attributes:
        inner: the other density.
        start: the quantile at which this one begins, in [0, 1).
    """

    inner: Times = part("diffusion.times", default=Uniform())
    start: float = 0.0

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return self.inner.at(1 - (1 - self.start) * (1 - u), path)


class CurriculumState(nn.Module):
    """The stage of a curriculum, and the running mean of the loss in it, as buffers."""

    stage: Tensor
    steps_in_stage: Tensor
    steps_without_improvement: Tensor
    mean_loss: Tensor
    best_loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("stage", "steps_in_stage", "steps_without_improvement"):
            self.register_buffer(name, torch.tensor(int(name == "stage")))
        for name in ("mean_loss", "best_loss"):
            self.register_buffer(name, torch.tensor(0.0, dtype=torch.float64))

    def update(self, loss: float, smoothing: float, patience: float, longest: float) -> None:
        """Take one step's loss into account; a new stage starts a new mean."""
        first = int(self.steps_in_stage) == 0
        mean = loss if first else smoothing * float(self.mean_loss) + (1 - smoothing) * loss
        better = first or mean < float(self.best_loss)
        self.mean_loss.fill_(mean)
        self.best_loss.fill_(mean if better else float(self.best_loss))
        self.steps_in_stage += 1
        self.steps_without_improvement.fill_(0 if better else int(self.steps_without_improvement) + 1)
        if int(self.steps_without_improvement) >= patience or int(self.steps_in_stage) >= longest:
            self.stage += 1
            self.steps_in_stage.zero_()
            self.steps_without_improvement.zero_()


def _log_snr_quantile(times: Times, path: NoisePath, share: float) -> float:
    """The quantile of the density that lies, in log-SNR, `share` of the way from its cleanest to its noisiest."""

    def lam(u: float) -> float:
        return float(path.lam(times.at(torch.tensor(u, dtype=torch.float64), path)))

    clean, noisy = lam(TAIL), lam(1 - TAIL)
    edge, low, high = clean + share * (noisy - clean), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lam(middle) > edge else (low, middle)
    return high
