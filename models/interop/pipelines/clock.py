"""The clock of a pipeline's loop: a scheduler that says when a loop begins and when a step has ended."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["Clock"]


class Clock:
    """A stand-in for a scheduler, which shares its state and class and calls back.

    Args:
        scheduler: of a pipeline.
        begin: called when `set_timesteps` has begun a loop.
        tick: called after each `step` with the sample [B, ...] that it returned.

    Attributes:
        scheduler: the one that was given, whose own methods are as they were.
        stand_in: what the pipeline is to use instead; to diffusers it is of the scheduler's own class.
        index: of the timestep at which the network is evaluated next; None outside a loop.
        begun: whether a step of the loop has ended.
    """

    def __init__(self, scheduler: Any, begin: Callable[[], None], tick: Callable[[Tensor], None]):
        self.scheduler, self.begin, self.tick = scheduler, begin, tick
        self.index: int | None = None
        self.begun = False
        self.stand_in = self._stand_in()

    @property
    def count(self) -> int:
        """Timesteps of the loop, from the first on, even if the pipeline enters it later."""
        return int(self.scheduler.timesteps.numel())  # len of those of gen may count steps of several evaluations

    @property
    def order(self) -> int:
        """Timesteps of one step: two of Heun's method."""
        return max(1, int(getattr(self.scheduler, "order", 1)))

    @property
    def steps(self) -> int:
        """Steps of the loop."""
        times = getattr(self.scheduler, "times", None)  # of gen's own, whose steps may have unlike evaluations
        return -(-self.count // self.order) if times is None else len(times) - 1

    def position(self) -> tuple[int, int]:
        """Return step and stage of the evaluation at hand."""
        assert self.index is not None
        own: tuple[int, int] | None = getattr(self.scheduler, "position", None)  # of gen's own, where they say it
        return divmod(self.index, self.order) if own is None else own

    def times(self) -> tuple[float, float]:
        """Return t, a thousandth of the timestep, and the half log-SNR of the evaluation at hand."""
        assert self.index is not None
        timestep = float(self.scheduler.timesteps[self.index])
        table = getattr(self.scheduler, "alphas_cumprod", None)
        if isinstance(table, Tensor):
            low = min(max(math.floor(timestep), 0), len(table) - 1)
            high = min(low + 1, len(table) - 1)
            abar = torch.lerp(table[low].double(), table[high].double(), timestep - math.floor(timestep))
            return timestep / 1000, _log_ratio(float(abar), 1 - float(abar)) / 2
        sigma = timestep / 1000
        return sigma, _log_ratio(1 - sigma, sigma)

    def _stand_in(self) -> Any:
        kind, clock = type(self.scheduler), self

        def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = kind.set_timesteps(self, *args, **kwargs)
            if not isinstance(self.timesteps, Tensor):
                raise UserError(f"{kind.__name__} chooses its steps as it goes; a cache must know how many they are")
            clock.index = None
            clock.begin()
            clock.index, clock.begun = 0, False
            return out

        def set_begin_index(self: Any, begin_index: int = 0) -> Any:
            if clock.index is not None:
                clock.index = begin_index
            return kind.set_begin_index(self, begin_index)

        def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Any:
            if (
                clock.index is not None and not clock.begun and timestep is not None
            ):  # it may begin later than at the first
                same = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
                clock.index = int(same[0]) if len(same) else clock.index
            return kind.scale_model_input(self, sample, timestep)

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = kind.step(self, *args, **kwargs)
            if clock.index is not None:
                clock.index, clock.begun = clock.index + 1, True
                clock.tick(out[0] if isinstance(out, tuple) else out.prev_sample)
                clock.index = clock.index if clock.index < clock.count else None
            return out

        methods: dict[str, Callable[..., Any]] = {
            "set_timesteps": set_timesteps,
            "step": step,
            "set_begin_index": set_begin_index,
            "scale_model_input": scale_model_input,
        }
        methods = {name: method for name, method in methods.items() if hasattr(kind, name)}
        members = {name: functools.wraps(getattr(kind, name))(method) for name, method in methods.items()}
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        stand_in: Any = object.__new__(type(kind.__name__, (kind,), {**members, **names}))
        stand_in.__dict__ = self.scheduler.__dict__
        return stand_in


def _log_ratio(a: float, b: float) -> float:
    return math.inf if b <= 0 else -math.inf if a <= 0 else math.log(a / b)
