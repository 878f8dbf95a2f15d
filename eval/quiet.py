"""Checks that a machine was quiet while something was timed: what other processes used, and two measured ceilings.

A time says little if somebody else had half of the processor, and a mean of the load says little about it: the work of
other processes is what the system's clocks count beyond one's own.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen.eval.bench import MachinePeak

__all__ = ["LoadMeter", "disturbance"]

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
