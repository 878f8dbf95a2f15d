"""Checks that a machine was quiet while something was timed: what other processes used, and two measured ceilings.

Whatever writes times to a file does it in one way: `with QuietCheck() as check: ...`, then `check.write(file, times)`.

A time says little if somebody else had half of the processor, and a mean of the load says little about it: the work of
other processes is what the system's clocks count beyond one's own.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from gen.config.machine import processor
from gen.config.spec import Json
from gen.config.writing import write_json
from gen.eval.bench import BenchContext, MachinePeak, measure_peak
from gen.eval.provenance import machine
from gen.training.resume import versions

__all__ = ["LoadMeter", "QuietCheck", "about_machine", "disturbance"]

OTHERS = 0.1  # the share of all processors that other processes may use
APART = 0.1  # the relative difference between the ceilings before and after


@dataclass
class LoadMeter:
    """Share of all processors that other processes use, from the meter's creation on.

    Attributes:
        began: seconds: the wall's, those of all processes, and this one's with its finished children.
    """

    began: tuple[float, float | None, float] = field(default_factory=lambda: _clocks())

    def others(self) -> float | None:
        """Return the share of all processors, in [0, 1]; None where the system does not count."""
        (wall, busy, own), now = self.began, _clocks()
        if busy is None or now[1] is None or now[0] <= wall:
            return None
        return max(0.0, (now[1] - busy - (now[2] - own)) / (now[0] - wall) / (os.cpu_count() or 1))


class QuietCheck:
    """Context in which something is timed: names the machine, and refuses what was timed while it was not quiet.

    Args:
        context: device, dtype and size of the products and copies that are measured before and after; float32 on the
            CPU by default.
    """

    def __init__(self, context: BenchContext | None = None) -> None:
        self.context = context or BenchContext(torch.device("cpu"), torch.float32)

    def __enter__(self) -> QuietCheck:
        self._before, self._meter = measure_peak(self.context), LoadMeter()
        return self

    def __exit__(self, *_: object) -> None:
        self._others, self._after = self._meter.others(), measure_peak(self.context)

    def write(self, path: Path, times: Json, wall: bool = True) -> bool:
        """Write times with what they say of their machine; print why not if it was not quiet.

        Args:
            path: the file.
            times: what was measured, by name.
            wall: whether times are the wall's; processor times of two ways in turns can be compared under load.

        Returns:
            Whether they were written.
        """
        reason = disturbance(self._before, self._after, self._others) if wall else None
        if reason is not None:
            print(f"{path}: not written, for the machine was not quiet: {reason}. Run it again when it is")
            return False
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": about_machine(self.context.device),
            "versions": versions(),
            "peak": vars(self._before),
            "peak_after": vars(self._after),
            "others": self._others,
        }
        write_json(path, times | about)
        return True


def about_machine(device: torch.device) -> Json:
    """Return the name, cores, threads and processor of this machine.

    Args:
        device: that the name is of.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": machine(device), "cores": cores, "threads": torch.get_num_threads(), "cpu": processor()}


def disturbance(before: MachinePeak, after: MachinePeak, others: float | None) -> str | None:
    """Return why times cannot be trusted, or None.

    Args:
        before, after: measured before and after the times.
        others: as of LoadMeter.
    """
    reasons = []
    if others is not None and others > OTHERS:
        reasons.append(f"other processes used {others:.0%} of the processors")
    for what, a, b, unit in (
        ("products", before.flops / 1e12, after.flops / 1e12, "TFLOP/s"),
        ("copies", before.bytes / 1e9, after.bytes / 1e9, "GB/s"),
    ):
        if abs(a - b) > APART * max(a, b):
            reasons.append(f"the ceiling of {what} was {a:.3g} {unit} before and {b:.3g} after")
    return "; ".join(reasons) or None


def _clocks() -> tuple[float, float | None, float]:
    times = os.times()
    return time.perf_counter(), _busy_seconds(), sum(times[:4])


def _busy_seconds() -> float | None:
    """Return the seconds that all processors have worked since the start of the system."""
    file = Path("/proc/stat")
    if not file.is_file():
        return None
    user, nice, system, _idle, _wait, *interrupts = map(
        int, file.read_text(encoding="ascii").split("\n")[0].split()[1:8]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
