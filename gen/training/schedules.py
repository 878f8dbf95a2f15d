"""Learning-rate schedules: pure functions of the update count, so a resumed run is on the same curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.training.log import read_metrics
from gen.training.stages import Stages

__all__ = [
    "WSD", "WSDS", "Constant", "Cosine", "InverseSqrt", "Linear", "Refined", "Schedule", "Steps",
    "WarmupSchedule",
    "median_filter",
]  # fmt: skip


class Schedule(Protocol):
    """A learning-rate schedule: a frozen dataclass that maps the update count to a factor on the peak rate.

    Optional: `ends`, a tuple of updates whose checkpoints are saved and never pruned (see WSDS).
    """

    def factor(self, update: int, total: int) -> float:
        """Return the factor on the peak learning rate.

        Args:
            update: 0, 1, ..., total - 1.
            total: the run's number of updates.
        """
        ...


@dataclass(frozen=True)
class WarmupSchedule:
    """A schedule that begins with a linear warm-up.

    Attributes:
        warmup: updates over which the rate rises linearly from 0; update 0 already has 1 / warmup of the peak.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        check_fields(self, warmup="[0, inf)")

    def factor(self, update: int, total: int) -> float:
        return (update + 1) / self.warmup if update < self.warmup else self.after_warmup(update, total)

    def after_warmup(self, update: int, total: int) -> float:
        """The factor at update warmup, ..., total - 1; by default a function of progress alone."""
        return self.at_progress((update - self.warmup) / max(1, total - self.warmup))

    def at_progress(self, progress: float) -> float:
        """The factor when the share `progress`, 0 to 1, of the updates after the warm-up is done."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(WarmupSchedule):
    """The peak rate throughout.

    Attributes:
        warmup: see WarmupSchedule.
    """

    def at_progress(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(WarmupSchedule):
    """Linear decay from the peak to `floor` of it.

    Attributes:
        warmup: see WarmupSchedule.
        floor: the last factor.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, warmup="[0, inf)", floor="[0, 1]")

    def at_progress(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress


@dataclass(frozen=True)
class Cosine(WarmupSchedule):
    """Half a cosine from the peak to `floor` of it (Loshchilov & Hutter 2017).

    Attributes:
        warmup: see WarmupSchedule.
        floor: the last factor.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, warmup="[0, inf)", floor="[0, 1]")

    def at_progress(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class InverseSqrt(WarmupSchedule):
    """The peak for `flat` updates, then 1 / sqrt(n) decay (EDM2, Karras et al. 2024).

    factor = min((n + 1) / warmup, 1) / sqrt(max(n / flat, 1)): the end of training need not be known.

    Attributes:
        warmup: see WarmupSchedule.
        flat: updates before the decay, counted from the first, those of the warm-up included; default EDM2's.
    """

    flat: int = 70_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, flat="[1, inf)")

    def factor(self, update: int, total: int) -> float:
        ramp = min((update + 1) / self.warmup, 1.0) if self.warmup else 1.0
        return ramp / math.sqrt(max(update / self.flat, 1.0))


@dataclass(frozen=True)
class WSD(WarmupSchedule):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): the peak, then a linear decay at the end.

    Attributes:
        warmup: see WarmupSchedule.
        decay: share of the updates after the warm-up over which the rate falls, in (0, 1].
        floor: the last factor.
    """

    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, decay="(0, 1]", floor="[0, 1]")

    def at_progress(self, progress: float) -> float:
        return 1 - (1 - self.floor) * max(0.0, (progress - (1 - self.decay)) / self.decay)


@dataclass(frozen=True)
class WSDS(WarmupSchedule):
    """Several decays in one run, each followed by a jump back to the peak (WSD-S, Wen et al. 2024, arXiv 2410.05192).

    The checkpoint of each end is saved and never pruned: it is a finished model, and training continues from it at the
    peak. A run that has ended continues with more steps just as if its end had been listed.

    Attributes:
        warmup: see WarmupSchedule.
        ends: updates at which a decay ends, growing; the last decay ends with the run.
        decay: length of a decay as a share of the updates done at its end, in (0, 1].
        floor: the factor at the end of a decay; above 0 unless the shape is linear.
        shape: "inverse" is 1 / (s / floor + 1 - s) at the share s of the decay, "linear" 1 - (1 - floor) s.
    """

    ends: tuple[int, ...] = ()
    decay: float = 0.1
    floor: float = 0.1
    shape: Literal["inverse", "linear"] = "inverse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, decay="(0, 1]")
        if not (0 < self.floor <= 1 or (self.floor == 0 and self.shape == "linear")):
            raise UserError(f"WSDS: floor = {self.floor}; it must be in (0, 1], or 0 for a linear decay")
        if list(self.ends) != sorted({e for e in self.ends if e > self.warmup}):
            raise UserError(f"WSDS: ends = {list(self.ends)}; they must grow, from above warmup = {self.warmup}")

    def after_warmup(self, update: int, total: int) -> float:
        if update >= total:
            return self.floor
        begin = max([self.warmup, *(e for e in self.ends if e <= update)])
        end = min([total, *(e for e in self.ends if e > update)])
        first = max(begin, end - max(1, round(self.decay * end)))
        s = max(0, update - first) / (end - first)
        if self.shape == "linear":
            return 1 - (1 - self.floor) * s
        return 1 / (s / self.floor + 1 - s)


@dataclass(frozen=True)
class Steps(Stages, WarmupSchedule):
    """A constant factor for each stage, such as `gen tune` finds.

    Attributes:
        warmup: see WarmupSchedule.
        ends, factors: see Stages.
    """

    def __post_init__(self) -> None:
        Stages.__post_init__(self)
        WarmupSchedule.__post_init__(self)

    def after_warmup(self, update: int, total: int) -> float:
        return self.at(update)


@dataclass(frozen=True)
class Refined(WarmupSchedule):
    """Linear decay refined by the gradient norms G_t of an earlier run (Defazio et al. 2023, arXiv 2310.07831, alg. 1).

    The factor is w_t sum_{p > t} w_p over its largest value, with w = G^-power; the last is 0. The warm-up, if any, is
    not part of it.

    Attributes:
        warmup: see WarmupSchedule.
        norms: evenly spaced smoothed norms of a run, see `from_run`; constant ones, or none, give 1 - t / (T - 1).
        power: 2 as published for L2 norms, which gen records; for Adam the paper has 1 with L1 norms.
    """

    norms: tuple[float, ...] = ()
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, norms="(0, inf)", power="[0, inf)")

    @staticmethod
    def from_run(folder: str | Path, power: float = 2.0, warmup: int = 0, window: float = 0.1) -> Refined:
        """Return the schedule that the gradient norms of a run folder suggest.

        Args:
            folder: a run folder; the run must have had log_every 1.
            power, warmup: as of the class.
            window: width of the median filter as a share of the run.

        Raises:
            UserError: if the folder has no metrics.jsonl, or one without the norm of every step.
        """
        file = Path(folder) / "metrics.jsonl"
        norms = {e["step"]: e["grad_norm"] for e in read_metrics(file) if "grad_norm" in e}
        if not norms or len(norms) != max(norms):
            raise UserError(
                f"{file} has the gradient norm of {len(norms)} of {max(norms, default=0)} steps; it must have "
                "been trained with log_every 1"
            )
        smoothed = median_filter([norms[step] for step in sorted(norms)], window)
        return Refined(warmup=warmup, norms=tuple(float(f"{norm:.6g}") for norm in smoothed.tolist()), power=power)

    @cached_property
    def _curves(self) -> dict[int, list[float]]:
        return {}

    def after_warmup(self, update: int, total: int) -> float:
        if total not in self._curves:
            self._curves[total] = self.curve(total)
        return self._curves[total][min(update, total - 1) - self.warmup]

    def curve(self, total: int) -> list[float]:
        """The factors of updates warmup, ..., total - 1."""
        norms = _resample(torch.tensor(self.norms or (1.0,), dtype=torch.float64), total)[self.warmup :]
        if len(norms) < 2:
            return [1.0]
        w = (norms / norms.min()) ** -self.power
        later = w.flip(0).cumsum(0).flip(0)[1:]  # sum_{p > t} w_p
        rate = torch.cat([w[:-1] * later, w.new_zeros(1)])
        return (rate / rate.max()).tolist()


def median_filter(norms: Sequence[float], window: float = 0.1, longest: int = 2000) -> Tensor:
    """Smooth gradient norms by the median filter of Defazio et al. 2023, of width 2 floor(window n / 2) + 1.

    At the start the first value is repeated, at the end the sequence is mirrored.

    Args:
        norms: the norm of every update.
        window: width as a share of the sequence.
        longest: of more norms than this, the medians of as many equal stretches are taken first.

    Returns:
        float64 [min(len(norms), longest)].
    """
    values = torch.tensor(norms, dtype=torch.float64)
    if len(values) > longest:
        values = torch.stack([stretch.median() for stretch in values.tensor_split(longest)])
    half = int(window * len(values)) // 2
    padded = torch.cat([values[:1].expand(half), values, values[-half - 1 : -1].flip(0)])
    return padded.unfold(0, 2 * half + 1, 1).median(-1).values


def _resample(values: Tensor, n: int) -> Tensor:
    """n values, by linear interpolation from the first to the last of `values`."""
    position = torch.linspace(0, len(values) - 1, n, dtype=torch.float64)
    low = position.floor().long().clamp(max=max(0, len(values) - 2))
    return torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], position - low)
