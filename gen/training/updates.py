"""Numbers of a step on their way from the device, and what keeps an update from those that are not finite.

On a GPU the host is a step ahead: it reads the numbers of a step while the next one is computed. Until then a flag on
the device, which the optimisers look at, keeps everything as it was before the first number that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["FiniteGuard", "Numbers", "StopSignal", "Update"]


class Numbers:
    """Numbers that are copied from a device while it goes on, and waited for when they are read.

    Args:
        values: [n].
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # pinned, of a GPU
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._arrived = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> list[float]:
        """Return the numbers; the host waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


@dataclass(frozen=True)
class Update:
    """One optimiser step of some roles.

    Attributes:
        step: updates of the run before it.
        roles: that were updated.
        lr: the learning rate.
        names: of the numbers after loss and norm of the gradient.
        numbers: loss, norm of the gradient, and the others.
    """

    step: int
    roles: tuple[str, ...]
    lr: float
    names: tuple[str, ...]
    numbers: Numbers

    def finite(self, scaled: bool) -> bool:
        """Return whether the loss is finite, and the gradient.

        Args:
            scaled: True for fp16, which finds its scale by overflowing: a step whose gradient does is skipped.
        """
        value, size, *_ = self.numbers.read()
        return math.isfinite(value) and (scaled or math.isfinite(size))

    def logs(self, main: str) -> dict[str, float]:
        """Return the numbers by name; loss and norm of another role have its name before theirs.

        Args:
            main: the role that samples.
        """
        prefix = "" if main in self.roles else f"{self.roles[0]}_"
        value, size, *others = self.numbers.read()
        return {f"{prefix}loss": value, f"{prefix}grad_norm": size} | dict(zip(self.names, others, strict=True))

    def __str__(self) -> str:
        value, size, *_ = self.numbers.read()
        return f"{self.roles[0]} loss {value:g}, gradient norm {size:g}, lr {self.lr:.3g}"


class FiniteGuard:
    """A flag on a device: once a number was not finite, optimisers leave weights and their state as they are.

    It uses what torch's fused optimisers have for gradient scaling: with `found_inf` 1 a step does nothing, with 0 it
    has the bits that it has without.

    Args:
        device: of the networks.
        optims: all of the run, each of them `supported`.
        scaled: True for fp16, which finds its scale by overflowing: a gradient that does skips its own step alone.

    Attributes:
        found: the flag, 0 or 1, float32 0-d.
    """

    def __init__(self, device: torch.device, optims: Iterable[torch.optim.Optimizer], scaled: bool = False) -> None:
        self.found, self._scaled = torch.zeros((), device=device), scaled
        for optim in optims:
            given: Any = optim
            given.found_inf = self.found
            if scaled:
                optim.register_step_pre_hook(self._join)

    @classmethod
    def of(cls, optims: Iterable[torch.optim.Optimizer], accelerator: Accelerator) -> Self | None:
        """Return the guard of a run whose numbers can be read late; None where they are read before each update.

        Late is for GPUs, and for optimisers that are `supported`.

        Args:
            optims: all of the run, as they were built.
            accelerator: of the run.
        """
        optims = list(optims)
        late = accelerator.device.type == "cuda" and all(map(cls.supported, optims))
        return cls(accelerator.device, optims, accelerator.scaler is not None) if late else None

    @staticmethod
    def supported(optim: torch.optim.Optimizer) -> bool:
        """Return whether an optimiser looks at `found_inf`."""
        return bool(getattr(optim, "_step_supports_amp_scaling", False))

    def watch(self, loss_and_norm: Tensor) -> None:
        """Set the flag for good if the loss, or without fp16 the norm of the gradient, is not finite.

        Args:
            loss_and_norm: of an update, [2], on the device.
        """
        values = loss_and_norm[:1] if self._scaled else loss_and_norm
        torch.maximum(self.found, 1 - torch.isfinite(values).all().float(), out=self.found)

    def _join(self, optim: Any, *_: object) -> None:
        """Join what fp16's scaler has just found in an optimiser's gradient with the flag."""
        optim.found_inf = torch.maximum(optim.found_inf, self.found)


class StopSignal:
    """The signal by which one of several processes was asked to stop, of which all must know at the same step.

    Args:
        accelerator: of the processes.
        late: whether the answer is that of the step before, so that the host does not wait.
    """

    def __init__(self, accelerator: Accelerator, late: bool) -> None:
        self._accelerator, self._late = accelerator, late
        self._last: Numbers | None = None

    def __call__(self, here: int) -> int:
        """Return the highest number of a signal; 0 for none. All processes have to call.

        Args:
            here: that of this process, or 0.
        """
        if self._accelerator.num_processes == 1:
            return here
        answer = Numbers(self._accelerator.gather(torch.full((1,), here, device=self._accelerator.device)))
        before, self._last = self._last if self._late else answer, answer
        return 0 if before is None else int(max(before.read()))
