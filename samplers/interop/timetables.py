"""Times of a loop in a pipeline of diffusers: those of a grid of ours, or of the pipeline's own scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.spec import name_of
from gen.diffusion.contracts import Grid
from gen.diffusion.foreign_schedule import ForeignSchedule, read_times, start_std
from gen.diffusion.path import Flow

__all__ = ["ForeignTimetable", "GridTimetable", "Request", "Timetable"]


class Request(NamedTuple):
    """The arguments of a pipeline's set_timesteps.

    Attributes:
        num_inference_steps: steps of the loop.
        timesteps: the network's times at the begin of each step, falling.
        sigmas: noise levels in place of these: sigma on a flow path, sigma / alpha on others; falling.
        mu: logarithm of the factor that shifts all times.
    """

    num_inference_steps: int | None = None
    timesteps: Sequence[float] | Tensor | None = None
    sigmas: Sequence[float] | Tensor | None = None
    mu: float | None = None

    def given(self) -> dict[str, Any]:
        """Return the arguments that are not None."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Timetable(Protocol):
    """The times of a loop and how the network counts them.

    Attributes:
        schedule: path, parameterisation and unit of time of the pipeline's network.
        dtype: of the listed timesteps.
    """

    schedule: ForeignSchedule
    dtype: torch.dtype

    def times(self, request: Request) -> Tensor:
        """Return the falling times of a loop, float64 [steps + 1].

        Args:
            request: the arguments of set_timesteps.
        """
        ...

    def start_std(self, t: Tensor) -> float:
        """Return the standard deviation of the sample that a loop starts with.

        Args:
            t: its first time.
        """
        ...

    def to_network(self, t: Tensor) -> Tensor:
        """Return the network's time for t, float64.

        Args:
            t: 0-d or [n].
        """
        ...


class GridTimetable:
    """The times of a grid, or custom ones as `FlowMatchEulerDiscreteScheduler` reads them."""

    dtype = torch.float64

    def __init__(self, schedule: ForeignSchedule, grid: Grid, use_dynamic_shifting: bool):
        self.schedule, self.grid, self.use_dynamic_shifting = schedule, grid, use_dynamic_shifting

    def times(self, request: Request) -> Tensor:
        path, steps, mu = self.schedule.path, request.num_inference_steps, request.mu
        given = [name for name in ("timesteps", "sigmas") if getattr(request, name) is not None]
        if len(given) == 2 or (steps is None and not given):
            raise UserError("set_timesteps: give one of num_inference_steps, timesteps and sigmas")
        times = self.times_of(given[0], getattr(request, given[0])) if given else self.grid.times(path, steps or 0)
        if steps not in (None, len(times) - 1):
            raise UserError(f"set_timesteps: num_inference_steps = {steps} beside {len(times) - 1} {given[0]}")
        if not self.use_dynamic_shifting:
            return times
        if mu is None:
            raise UserError("set_timesteps: use_dynamic_shifting needs mu, which pipelines of flow models pass")
        return path.t_from_lambda(path.lam(times) - mu).clamp(0, path.t1)

    def times_of(self, name: str, values: Sequence[float] | Tensor) -> Tensor:
        """Return times for custom values, "timesteps" or "sigmas"."""
        given = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
        path, grid = self.schedule.path, name_of(type(self.grid))
        if name == "timesteps":
            times = self.from_network(given)
        elif grid not in ("linear", "shift"):
            raise UserError(f"set_timesteps: sigmas beside the grid {grid}, which has its own; allowed: linear, shift")
        else:
            given = given[:-1] if len(given) > 1 and given[-1] == 0 else given
            times = given if isinstance(path, Flow) else path.t_from_lambda(-given.log()).clamp(max=path.t1)
            factor = float(getattr(self.grid, "factor", 1.0))
            times = path.t1 * (factor * times / (factor * times + (path.t1 - times))) if factor != 1 else times
        falls = bool(len(times)) and bool((times.diff() < 0).all()) and float(times[-1]) > 0
        if not falls or float(times[0]) > path.t1:
            most = float(self.to_network(torch.tensor(path.t1).double())) if name == "timesteps" else path.t1
            raise UserError(
                f"set_timesteps: {name} = {shown(given.tolist())}; they fall from at most {most:g} and "
                "stay above the clean data's"
            )
        return torch.cat([times, times.new_zeros(1)])

    def start_std(self, t: Tensor) -> float:
        return float(self.schedule.path.sigma(t))

    def to_network(self, t: Tensor) -> Tensor:
        return self.schedule.path.t_to_network(t) * self.schedule.time_scale

    def from_network(self, values: Tensor) -> Tensor:
        """Return the times t at which the network gets some values, float64 [n]; inverse of `to_network`."""
        t1 = self.schedule.path.t1
        low, high = torch.full_like(values, 1e-9 * t1), torch.full_like(values, 1.0001 * t1)
        for _ in range(80):  # it grows with t on every path
            middle = (low + high) / 2
            above = self.to_network(middle) > values
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        exact = high.round()  # entries of a table are whole numbers
        return torch.where((exact - high).abs() < 1e-9 * t1, exact, high)


class ForeignTimetable:
    """The times that a scheduler of diffusers answers to the same request, on a copy of it."""

    def __init__(self, schedule: ForeignSchedule, scheduler: Any, network_time: Literal["exact", "like"]):
        self.schedule, self.scheduler, self.network_time = schedule, copy.deepcopy(scheduler), network_time
        self.dtype = torch.float64
        self.nodes: tuple[Tensor, Tensor] | None = None

    def times(self, request: Request) -> Tensor:
        kind, given = type(self.scheduler).__name__, request.given()
        allowed = [
            name for name in inspect.signature(self.scheduler.set_timesteps).parameters if name in request._fields
        ]
        if unknown := [name for name in given if name not in allowed]:
            raise UserError(f"set_timesteps: {', '.join(unknown)} given; {kind} takes {', '.join(allowed)}")
        try:
            self.scheduler.set_timesteps(**given)
        except ValueError as error:
            raise UserError(f"set_timesteps of {kind}: {error}") from error
        times = read_times(self.scheduler, self.schedule.path)
        listed = torch.as_tensor(self.scheduler.timesteps).cpu()
        self.dtype = listed.dtype if listed.is_floating_point() else torch.float64
        self.nodes = self._nodes(times, listed.double()) if self.network_time == "like" else None
        return times

    def _nodes(self, times: Tensor, listed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times of the steps and the network's at them, both rising, and those of the end."""
        listed = listed.unique()
        if len(listed) != len(times) - 1:
            raise UserError(
                f"network_time 'like': {type(self.scheduler).__name__} lists {len(listed)} timesteps for "
                f"{len(times) - 1} steps; allowed here: 'exact'"
            )
        return times.flip(0), torch.cat([self._exact(times[-1:]).clamp(max=float(listed[0])), listed])

    def start_std(self, t: Tensor) -> float:
        return start_std(self.scheduler, self.schedule.path)

    def to_network(self, t: Tensor) -> Tensor:
        if self.nodes is None:
            return self._exact(t)
        known, listed = self.nodes
        right = torch.searchsorted(known, t.contiguous()).clamp(1, len(known) - 1)
        share = (t - known[right - 1]) / (known[right] - known[right - 1])
        return torch.lerp(listed[right - 1], listed[right], share)

    def _exact(self, t: Tensor) -> Tensor:
        return self.schedule.path.t_to_network(t) * self.schedule.time_scale
