"""Speed as it is really measured: warmed up, synchronised, repeated, and reported as a median with its spread."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from gen.config.errors import UserError

__all__ = ["Speed", "Throughput", "Turns", "peak_mb", "spread", "timed"]

LEAST = 6  # turns: the least and the greatest of six hold the median with probability 1 - 2 / 2^6


@dataclass(frozen=True)
class Speed:
    """What was measured. Times are milliseconds per image in batches of `batch`; p10 and p90 are over the blocks.

    nfe: network evaluations per image, counted; warmup: blocks thrown away first; steady: whether those had settled;
    peak_mb: the most memory, of the device, or on the CPU of the whole process so far.
    """

    batch: int
    blocks: int
    warmup: int
    steady: bool
    ms_per_image: float
    p10: float
    p90: float
    images_per_second: float
    nfe: float | None
    peak_mb: float
    device: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Throughput:
    """How to time a sampler: a block is one call for `batch` images.

    Warm-up goes on until the last three blocks lie within `within` of their median, at most `warmup` blocks or half of
    `seconds`; then blocks are timed until there are `blocks` of them or the time is up, five at least.
    clock returns seconds; anything monotonic will do.
    """

    batch: int = 100
    blocks: int = 20
    warmup: int = 20
    within: float = 0.05
    seconds: float = 3.0
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.batch < 1 or self.blocks < 5 or self.warmup < 1 or not self.within > 0 or not self.seconds > 0:
            given = f"batch = {self.batch}, blocks = {self.blocks}, warmup = {self.warmup}, within = {self.within}"
            raise UserError(f"{given}, seconds = {self.seconds}: at least 1, 5, 1, and above 0, 0")

    def measure(self, run: Callable[[int], Any], device: str | torch.device = "cpu") -> Speed:
        """Times run(batch), which returns samples with their counted `nfe`, or anything else."""
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        nfe: list[float | None] = []

        def block() -> float:
            took, samples = timed(lambda: run(self.batch), device, self.clock)
            nfe.append(getattr(samples, "nfe", None))
            return took

        begin = self.clock()
        warm = [block()]
        while not steady(warm, self.within) and len(warm) < self.warmup and self.clock() - begin < self.seconds / 2:
            warm.append(block())
        times: list[float] = []
        while len(times) < 5 or (len(times) < self.blocks and self.clock() - begin < self.seconds):
            times.append(block())
        found = spread(times, self.batch)
        return Speed(
            self.batch, len(times), len(warm), steady(warm, self.within), **found, nfe=nfe[-1], peak_mb=peak_mb(device),
            device=str(device),
        )  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """How to time several calls against each other, on a machine that others use too.

    They take turns, there and back (A B C, C B A): what slows the machine for a while slows all of them, and a steady
    drift makes as many ratios too large as too small. It goes on until there are `turns` of them or the time is up, six
    at least, the fewest from which an interval for a median can be told with 95 % confidence.
    """

    turns: int = 40
    seconds: float = 3.0
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.turns < LEAST or not self.seconds > 0:
            raise UserError(f"turns = {self.turns}, seconds = {self.seconds}: at least {LEAST}, and above 0")

    def measure(self, calls: Sequence[Callable[[], Any]], device: str | torch.device = "cpu") -> list[list[float]]:
        """Seconds, [turn][call]; an even number of turns. Nothing is warmed up here: make every call once before."""
        device, begin = torch.device(device), self.clock()
        found: list[list[float]] = []
        while len(found) < LEAST or (len(found) < self.turns and self.clock() - begin < self.seconds):
            found.append([timed(call, device, self.clock)[0] for call in calls])
            found.append([timed(call, device, self.clock)[0] for call in reversed(calls)][::-1])
        return found


def timed(call: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> tuple[float, Any]:
    """The seconds that a call takes until the device is done, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    out = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, out


def spread(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """The numbers of Speed that follow from the seconds of several blocks of `batch` images."""
    ms = sorted(1000 * t / batch for t in seconds)
    middle = median(ms)
    if not middle > 0:
        raise UserError(f"the clock did not move during {len(ms)} blocks of {batch} images: raise `batch`")
    return {
        "ms_per_image": middle,
        "p10": quantile(ms, 0.1),
        "p90": quantile(ms, 0.9),
        "images_per_second": 1000 / middle,
    }


def steady(times: Sequence[float], within: float) -> bool:
    """Whether the last three agree."""
    last = times[-3:]
    return len(last) == 3 and max(last) - min(last) <= within * median(last)


def quantile(ordered: Sequence[float], q: float) -> float:
    """By linear interpolation, of values already in order."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def peak_mb(device: str | torch.device = "cpu") -> float:
    """The most memory used, in MiB: on a CUDA device since its last reset, or ever resident in this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
