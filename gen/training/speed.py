"""Speed of a training: samples per second, share of the device's peak, time lost to waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["MEASURED", "SpeedMeter", "matmul_tflops", "peak_mb"]

T = TypeVar("T")

# What two equal runs do not have in common.
MEASURED = ("seconds", "images_per_second", "tokens_per_second", "mfu", "data_wait", "peak_mb")
TRIES, LONG_ENOUGH, LARGEST = 5, 0.005, 8192


class SpeedMeter:
    """Meter of a training: its speed since the last call, its memory.

    Args:
        step: steps done.
        batch_size: global samples of a step.
        x: of one item; integers are text.
        device: that computes.
        peak_tflops: of one device; None if it is not known, and then there is no MFU.

    Attributes:
        flops: of a step, of one process, once they are counted; None before.
    """

    flops: int | None = None

    def __init__(
        self, step: int, batch_size: int, x: Tensor, device: torch.device, peak_tflops: float | None = None
    ) -> None:
        self._peak, self._device = peak_tflops, device
        self._began = self._last = time.perf_counter()
        self._waited = 0.0
        self._step, text = step, not x.is_floating_point()
        self._unit, self._each = ("tokens", batch_size * len(x)) if text else ("images", batch_size)

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield batches, and measure how long each took to come."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def measure(self, step: int) -> dict[str, float]:
        """Return the values by name after so many steps.

        "seconds" since training began; "images_per_second" or "tokens_per_second" of all processes, and "mfu";
        "data_wait", the share of the time in which the loop waited for data; "peak_mb", the most memory so far, in MiB,
        of tensors on a GPU, else of this process.
        """
        now = time.perf_counter()
        passed = max(now - self._last, 1e-9)
        pace = (step - self._step) / passed
        values = {f"{self._unit}_per_second": pace * self._each, "data_wait": self._waited / passed}
        if self._peak is not None and self.flops is not None:
            values["mfu"] = pace * self.flops / (self._peak * 1e12)
        values["peak_mb"] = peak_mb(self._device)
        self._step, self._last, self._waited = step, now, 0.0
        rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
        return {"seconds": round(now - self._began, 3), **rounded}


def peak_mb(device: str | torch.device = "cpu") -> float:
    """Return the most memory used, in MiB.

    Args:
        device: a CUDA device, since its last reset; else what was ever resident in this process.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure TFLOP/s of large matrix products: the best of some, of a size that takes long enough to be measured.

    Args:
        device, dtype: of the products.
    """
    size, seconds = 512, 0.0
    while seconds < LONG_ENOUGH and size < LARGEST:
        size *= 2
        a = torch.ones(size, size, device=device, dtype=dtype)
        seconds = min(_seconds(a) for _ in range(TRIES))
    return 2 * size**3 / seconds / 1e12


def _seconds(a: Tensor) -> float:
    began = time.perf_counter()
    product = a @ a
    product[0, 0].item()  # waits for a GPU
    return time.perf_counter() - began
