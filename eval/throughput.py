"""Speed as it is really measured: warmed up, synchronised, repeated, and reported as a median with its spread."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

import torch

from gen.config.errors import UserError

__all__ = ["InterleavedTiming", "Speed", "Throughput", "peak_mb", "spread", "timed"]

T = TypeVar("T")
MIN_ROUNDS = 6  # the least and the greatest of six values hold their median with probability 1 - 2 / 2^6


@dataclass(frozen=True)
class Speed:
    """A measured speed.

    Attributes:
        batch: images per block.
        blocks: timed blocks.
        warmup: blocks thrown away before.
        steady: whether the last of those agreed.
        ms_per_image: median over the blocks.
        p10, p90: percentiles over the blocks, ms per image.
        images_per_second: 1000 / ms_per_image.
        nfe: network evaluations per image, counted; None if the sampler does not count.
        peak_mb: the most memory in MiB, of the device, or on a CPU of the whole process so far.
        device: device string.
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
    """Times a sampler in blocks of one call for `batch` images.

    Blocks warm up until the last three lie within `within` of their median; then they are timed.

    Attributes:
        batch: images per block.
        blocks: timed blocks, at most; at least five.
        warmup: blocks to warm up, at most.
        within: relative spread at which the speed counts as steady.
        seconds: of the whole measurement; warming up takes half of it at most.
        clock: returns seconds; anything monotonic.
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
        """Time run(batch), which returns samples with their counted `nfe`, or anything else."""
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
class InterleavedTiming:
    """Times several calls against each other, on a machine that others use too.

    The calls take turns, there and back (A B C, C B A): what slows the machine for a while slows all of them, and a
    steady drift makes as many ratios too large as too small.

    Attributes:
        rounds: at most; at least six, the fewest that give a 95 % confidence interval for a median.
        seconds: after which no further round begins, once there are six.
        clock: returns seconds; anything monotonic.
    """

    rounds: int = 40
    seconds: float = 3.0
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.rounds < MIN_ROUNDS or not self.seconds > 0:
            given = f"rounds = {self.rounds}, seconds = {self.seconds}"
            raise UserError(f"{given}: at least {MIN_ROUNDS}, and above 0")

    def measure(self, calls: Sequence[Callable[[], Any]], device: str | torch.device = "cpu") -> list[list[float]]:
        """Return seconds, [round][call]; an even number of rounds. Make every call once before, to warm up."""
        device, begin = torch.device(device), self.clock()
        seconds: list[list[float]] = []
        while len(seconds) < MIN_ROUNDS or (len(seconds) < self.rounds and self.clock() - begin < self.seconds):
            seconds.append([timed(call, device, self.clock)[0] for call in calls])
            seconds.append([timed(call, device, self.clock)[0] for call in reversed(calls)][::-1])
        return seconds


def timed(call: Callable[[], T], device: torch.device, clock: Callable[[], float]) -> tuple[float, T]:
    """Return the seconds that a call takes until the device is done, and its result.

    Args:
        call: the function to time.
        device: synchronised before and after, if it is a CUDA device.
        clock: returns seconds; anything monotonic.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    out = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, out


def spread(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Return median, 10th and 90th percentile and rate, as Speed names them, of blocks of `batch` images.

    Args:
        seconds: of each block.
        batch: images in a block.

    Raises:
        UserError: if the clock did not move.
    """
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
    """Return whether the last three agree."""
    last = times[-3:]
    return len(last) == 3 and max(last) - min(last) <= within * median(last)


def quantile(ordered: Sequence[float], q: float) -> float:
    """Interpolate a quantile linearly, of values already in order."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def peak_mb(device: str | torch.device = "cpu") -> float:
    """Return the most memory used, in MiB.

    Args:
        device: a CUDA device, since its last reset; else what was ever resident in this process.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
