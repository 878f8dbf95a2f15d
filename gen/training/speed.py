"""Speed of a training: samples per second, share of the device's peak, time lost to waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from gen.training.run import Run

__all__ = ["MEASURED", "MakeProduct", "SpeedMeter", "best_seconds", "matmul_tflops", "peak_mb"]

T = TypeVar("T")

# What two equal runs do not have in common.
MEASURED = ("seconds", "images_per_second", "tokens_per_second", "mfu", "data_wait", "peak_mb")
# Of matrix products, by precision.
PRODUCTS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
TRIES, LONG_ENOUGH, LARGEST = 10, 0.005, 8192

MakeProduct = Callable[[Tensor, Tensor], Callable[[], Tensor]]  # two matrices -> a call that multiplies them


class SpeedMeter:
    """Meter of a training: its speed since the last call, its memory.

    Args:
        batches: of batch_size, that are done.
        batch_size: global samples.
        x: of one item; integers are text.
        device: that computes.
        at_once: batches of the first step, whose operations are counted.
        peak_tflops: of one device; None if it is not known, and then there is no MFU.

    Attributes:
        flops: of a batch, of one process, once they are counted; None before.
    """

    flops: int | None = None

    def __init__(
        self,
        batches: int,
        batch_size: int,
        x: Tensor,
        device: torch.device,
        peak_tflops: float | None = None,
        at_once: int = 1,
    ) -> None:
        self._peak, self._device, self._at_once = peak_tflops, device, at_once
        self._began = self._last = time.perf_counter()
        self._waited = 0.0
        self._batches, text = batches, not x.is_floating_point()
        self._unit, self._each = ("tokens", batch_size * len(x)) if text else ("images", batch_size)

    @classmethod
    def of(cls, run: Run, step: int, x: Tensor, device: torch.device) -> Self:
        """Return the meter of a run; "measured" is measured.

        Args:
            run: its batches and its `peak_tflops`.
            step: steps done.
            x, device: see the class.
        """
        peak = run.peak_tflops
        known = matmul_tflops(device, PRODUCTS[run.precision]) if peak == "measured" else peak
        plan = run.batch_plan
        return cls(plan.batches_before(step), run.batch_size, x, device, known, plan.factor(step))

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

    def counted(self, step: Callable[[], T]) -> T:
        """Call a step; of the first one the operations are counted, if the peak is known."""
        if self._peak is None or self.flops is not None:
            return step()
        with FlopCounterMode(display=False) as counter:
            done = step()
        self.flops = counter.get_total_flops() // self._at_once
        return done

    def measure(self, batches: int) -> dict[str, float]:
        """Return the values by name after so many batches of batch_size.

        "seconds" since training began; "images_per_second" or "tokens_per_second" of all processes, and "mfu";
        "data_wait", the share of the time in which the loop waited for data; "peak_mb", the most memory so far, in MiB,
        of tensors on a GPU, else of this process.
        """
        now = time.perf_counter()
        passed = max(now - self._last, 1e-9)
        pace = (batches - self._batches) / passed
        values = {f"{self._unit}_per_second": pace * self._each, "data_wait": self._waited / passed}
        if self._peak is not None and self.flops is not None:
            values["mfu"] = pace * self.flops / (self._peak * 1e12)
        values["peak_mb"] = peak_mb(self._device)
        self._batches, self._last, self._waited = batches, now, 0.0
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


def matmul_tflops(
    device: torch.device,
    dtype: torch.dtype,
    others: Sequence[MakeProduct] = (),
    largest: int = LARGEST,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure TFLOP/s of large matrix products: the best of some, of a size that takes long enough to be measured.

    Args:
        device, dtype: of the products.
        others: ways to multiply, beside PyTorch's.
        largest: rows and columns, at most; a sixteenth is tried first.
        clock: returns seconds; anything monotonic.
    """
    size, seconds = largest // 16, 0.0
    while seconds < LONG_ENOUGH and size < largest:
        size *= 2
        generator = torch.Generator(device).manual_seed(0)
        a, b = torch.randn(2, size, size, generator=generator, device=device).to(dtype)  # ones would take less power
        products: list[Callable[[], Tensor]] = [partial(torch.mm, a, b), *(make(a, b) for make in others)]
        seconds = min(best_seconds(product, device, clock) for product in products)
    return 2 * size**3 / seconds / 1e12


def best_seconds(call: Callable[[], Tensor], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the least seconds of ten calls, after two to warm up.

    Args:
        call: what is timed.
        device: that it runs on, which is waited for.
        clock: returns seconds; anything monotonic.
    """
    took = []
    for _ in range(TRIES + 2):
        began = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(clock() - began)
    return min(took[2:])
