"""Speed as it is really measured: warmed up, synchronised, repeated, and reported as a median with its spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch

from gen.config.errors import UserError
from gen.eval.record import Interval, Speed
from gen.training.speed import peak_mb

__all__ = ["InterleavedTiming", "Throughput", "median_interval", "spread", "timed"]

T = TypeVar("T")
MIN_ROUNDS = 6  # the least and the greatest of six values hold their median with probability 1 - 2 / 2^6


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

    def measure(self, run: Callable[[int], object], device: str | torch.device = "cpu") -> Speed:
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
        return Speed(
            **spread(times, self.batch),
            batch=self.batch,
            blocks=len(times),
            warmup=len(warm),
            steady=steady(warm, self.within),
            nfe=nfe[-1],
            peak_mb=peak_mb(device),
            device=str(device),
        )


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

    def measure(self, calls: Sequence[Callable[[], object]], device: str | torch.device = "cpu") -> list[list[float]]:
        """Return seconds, [round][call]; an even number of rounds. Make every call once before, to warm up."""
        device, begin = torch.device(device), self.clock()
        seconds: list[list[float]] = []
        while len(seconds) < MIN_ROUNDS or (len(seconds) < self.rounds and self.clock() - begin < self.seconds):
            seconds.append([timed(call, device, self.clock)[0] for call in calls])
            seconds.append([timed(call, device, self.clock)[0] for call in reversed(calls)][::-1])
        return seconds


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median, and the narrowest pair of order statistics around it that holds it with 95 % confidence.

    It assumes nothing of the distribution, only that values are independent: each lies above the median with
    probability 1/2.

    Args:
        values: in any order.

    Raises:
        UserError: below 6 values, of which no pair is enough.
    """
    n, inside = len(values), sorted(values)
    outside, rank = 2 / 2**n, 0  # the chance that all lie on one side, and the rank from 0 of the lower end
    if outside > 0.05:
        raise UserError(f"{n} values: at least 6 are needed for a 95 % interval of their median")
    while outside + 2 * math.comb(n, rank + 1) / 2**n <= 0.05:
        rank += 1
        outside += 2 * math.comb(n, rank) / 2**n
    return Interval(median(inside), inside[rank], inside[n - 1 - rank])


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
