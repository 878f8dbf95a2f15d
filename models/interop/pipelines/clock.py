"""The clock of a pipeline's loop: a scheduler that says when a loop begins and when a step has ended."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["Clock"]

CALLBACKS = ("callback_on_step_end", "callback")  # arguments of pipelines


class Clock:
    """A stand-in for a scheduler, which shares its state and class and calls back.

    A loop belongs to the call of the pipeline that began it, and ends with it at the latest: after an exception, too.
    Whoever writes a loop of their own calls `set_timesteps` in the function of the loop.

    Args:
        scheduler: of a pipeline.
        begin: called when `set_timesteps` has begun a loop.
        tick: called after each `step` with the sample [B, ...] that it returned.

    Attributes:
        scheduler: the one that was given, whose own methods are as they were.
        stand_in: what the pipeline is to use instead; to diffusers it is of the scheduler's own class.
        index: of the timestep at which the network is evaluated next; None outside a loop.
        begun: whether a step of the loop has ended.
        owner: the call that the loop belongs to, as `_key` says it.
    """

    def __init__(self, scheduler: Any, begin: Callable[[], None], tick: Callable[[Tensor], None]):
        self.scheduler, self.begin, self.tick = scheduler, begin, tick
        self.index: int | None = None
        self.begun = False
        self.owner: tuple[int, CodeType] | None = None
        self.stand_in = self._stand_in()

    @property
    def running(self) -> bool:
        """Whether the caller is within the loop, and not within another pipeline's call, or a user's callback."""
        if self.index is None:
            return False
        called: FrameType | None = None
        for frame in _callers():
            if _key(frame) == self.owner:
                return called is None or not _is_callback(called, frame)
            if _calls_pipeline(frame):
                return False
            called = frame
        return False

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
            clock.index, clock.begun, clock.owner = 0, False, _owner()
            return out

        def set_begin_index(self: Any, begin_index: int = 0) -> Any:
            if clock.running:
                clock.index = begin_index
            return kind.set_begin_index(self, begin_index)

        def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Any:
            if not clock.begun and timestep is not None and clock.running:  # it may begin later than at the first
                same = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
                clock.index = int(same[0]) if len(same) else clock.index
            return kind.scale_model_input(self, sample, timestep)

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = kind.step(self, *args, **kwargs)
            if clock.index is not None and clock.running:
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


def _callers() -> Iterator[FrameType]:
    """Yield the calls at work, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _key(frame: FrameType) -> tuple[int, CodeType]:
    return id(frame), frame.f_code  # the frame itself would keep what it holds


def _calls_pipeline(frame: FrameType) -> bool:
    if frame.f_code.co_name != "__call__" or frame.f_code.co_varnames[:1] != ("self",):
        return False
    return hasattr(frame.f_locals.get("self"), "scheduler")


def _is_callback(called: FrameType, owner: FrameType) -> bool:
    """Return whether a function called by a pipeline is the user's own, that which is called after each step."""
    if not _calls_pipeline(owner):
        return False
    given = owner.f_locals
    return any(called.f_code is _code_of(given.get(name)) for name in CALLBACKS)


def _code_of(function: Any) -> CodeType | None:
    """Return the code that runs first where a callable is called."""
    while isinstance(function, functools.partial):
        function = function.func
    plain = function if hasattr(function, "__code__") else getattr(function, "__func__", None)
    if plain is None and callable(function):
        plain = type(function).__call__
    return getattr(plain, "__code__", None)


def _owner() -> tuple[int, CodeType]:
    """Return the pipeline's call that is at work, or else the function that called diffusers or us."""
    frames = list(_callers())
    calls = [frame for frame in frames if _calls_pipeline(frame)]
    others = (f for f in frames if f.f_globals.get("__name__", "").partition(".")[0] != "diffusers")
    return _key(calls[0] if calls else next(f for f in others if f.f_globals is not globals()))


def _log_ratio(a: float, b: float) -> float:
    return math.inf if b <= 0 else -math.inf if a <= 0 else math.log(a / b)
