"""The network of a pipeline of diffusers under the contract of gen.diffusion.net.Net."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, shown
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.foreign_schedule import is_flow, read_schedule
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, expand
from gen.diffusion.tap import Chain, Skip, Tap, call_site
from gen.models.interop.pipelines.arguments import EveryRow, nest, on_device
from gen.models.interop.pipelines.controls import CONTROL, Control
from gen.models.interop.pipelines.families import Family, plain_module
from gen.models.interop.pipelines.listening import APPENDED, NULL, Heard
from gen.models.interop.pipelines.network_engine import NetworkEngine
from gen.models.interop.pipelines.taps import NetworkTaps

__all__ = ["PipelineNet", "PipelineSpec", "denoiser_of"]


def denoiser_of(
    heard: Heard,
    *,
    time: Literal["theirs", "exact"] = "theirs",
    path: NoisePath | None = None,
    parameterisation: Parameterisation | None = None,
    without: Sequence[str] = (),
) -> Denoiser:
    """Return the network of a pipeline as a denoiser of states like heard.latents under conditions like heard.cond.

    The network is the pipeline's own object, so adapters, hooks and placement of its weights stay in force.

    Args:
        heard: of the pipeline, which fixes size, number of frames and whatever else is no row of a batch.
        time: "theirs" rounds the time as the pipeline does: to whole timesteps where its scheduler has those, and to
            the dtype of its network; "exact" leaves it in float32 up to the network.
        path, parameterisation: None for those of the pipeline's scheduler.
        without: names of blocks to leave out, such as those that LD-Pruner scores least.
    """
    net = PipelineNet(heard, time=time, without=without)
    if path is None or parameterisation is None:
        schedule = read_schedule(heard.scheduler)
        path, parameterisation = path or schedule.path, parameterisation or schedule.parameterisation
    return Denoiser(net, path, parameterisation)


@dataclass(frozen=True)
class PipelineSpec:
    """Spec of a network that comes with its pipeline: it says what there is, and does not build it.

    Attributes:
        kind: class of the network.
        shape: of one x.
        classes: number of labels; 0 where conditions are those of the pipeline.
        without: blocks that are left out.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int = 0
    without: tuple[str, ...] = ()


class PipelineNet(nn.Module):
    """net(x [B, ...], t [B], cond) -> [B, ...] by the network of a pipeline, called as the pipeline calls it.

    A network of two stages (Wan 2.2) chooses by the time of each row.

    Attributes:
        inner: the pipeline's network.
        low: its network for low noise; None for one network.
        boundary: timestep of the last of `inner`'s.
        control: its ControlNet, whose weights are not among this network's; None without.
        state_shape: of one x.
        keys: of the conditions that it needs; of labels cond["y"] is as good, whose last stands for no class.
        engines: what an engine does in each network; () for none.
    """

    def __init__(self, heard: Heard, *, time: Literal["theirs", "exact"] = "theirs", without: Sequence[str] = ()):
        super().__init__()
        if time not in ("theirs", "exact"):
            raise UserError(f"time = {time!r}; allowed: theirs, exact")
        pipe = heard.pipe
        ratio = getattr(pipe.config, "boundary_ratio", None)
        self.inner = getattr(pipe, heard.name if ratio is None else "transformer")
        self.low = None if ratio is None else pipe.transformer_2
        self.steps = float(heard.scheduler.config.num_train_timesteps)
        self.boundary = 0.0 if ratio is None else ratio * self.steps
        self.family, self.constants = heard.family, dict(heard.constants)
        self.keys, self.control = tuple(key for key in heard.cond if not key.startswith(NULL)), heard.control
        self.state_shape = tuple(heard.latents.shape[1:])
        self.left_out, plain = Skip(tuple(without)), plain_module(self.inner)
        classes = int(plain.config.num_embeds_ada_norm) if heard.family.label else 0
        self.spec = PipelineSpec(type(plain).__name__, self.state_shape, classes, tuple(without))
        self.time, self.flow = time, is_flow(heard.scheduler)
        self.whole_steps = self.flow and not heard.timesteps.is_floating_point()
        self.dtype, self.appended_dim, self.token_times = heard.dtype, heard.appended_dim, heard.token_times
        self.taps, self.engines = NetworkTaps(), tuple[NetworkEngine, ...]()
        self.training = self.inner.training
        if without:
            self.taps.check(self.inner, without)

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineNet:
        self.taps.release()  # in a loop; they would call the original's modules
        if self.engines:
            raise UserError(f"{self.about}: a network under an engine is not copied")
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if s is not None:
            raise UserError(f"a target time s was given, but a {self.spec.kind} is no flow map and takes only t")
        if tuple(x.shape[1:]) != self.state_shape or t.shape != x.shape[:1]:
            raise UserError(f"x has shape {list(x.shape)} and t {list(t.shape)}; this {self.spec.kind} was heard with "
                            f"[B, {', '.join(map(str, self.state_shape))}] and takes [B]")  # fmt: skip
        if self.family.label and "y" in cond:
            cond = {self.family.label: cond["y"]}
        if missing := [key for key in self.keys if key not in cond]:
            raise UserError(f"this {self.spec.kind} needs cond[{missing[0]!r}]; given: {', '.join(cond) or 'nothing'}")
        if self.left_out.patterns:
            tap = self.left_out if tap is None else Chain((self.left_out, tap))
        return call_site(tap, "net", lambda x: self._by_stage(x, self.timestep(t), cond, tap), x)

    @property
    def about(self) -> str:
        """What an engine does, in words; "" for none."""
        return "; ".join(dict.fromkeys(engine.about for engine in self.engines))

    def under(self, engine: Any) -> PipelineNet:
        """Return the network as an engine computes it: its modules stay, and have the engine's hooks at evaluations.

        Args:
            engine: `packed` or `fused`; UserError for others, and where it would do nothing.
        """
        new = copy.copy(self)
        inner = [net for net in (self.inner, self.low) if net is not None]
        new.taps, new.engines = NetworkTaps(), tuple(NetworkEngine(net, engine) for net in inner)
        return new

    @contextmanager
    def taps_kept(self) -> Iterator[None]:
        """Leave hooks for taps and engines on the network within a loop, and take them off at its end."""
        with self._under_engines(), self.taps.kept():
            yield

    @contextmanager
    def _under_engines(self) -> Iterator[None]:
        """Let the engines compute what they can within."""
        with ExitStack() as stack:
            for engine in self.engines:
                if not engine.attached:  # by a loop around it
                    stack.enter_context(engine)
            yield

    def timestep(self, t: Tensor) -> Tensor:
        """Return the scheduler's timestep, [B], of a time that the path gives the network."""
        if self.time == "exact":
            return t * self.steps if self.flow else t
        step = t.float() * self.steps if self.flow else t.float()
        return (step + 1e-4).floor() if self.whole_steps else step  # cut off, as theirs, but not by rounding

    def null(self, cond: Cond) -> Cond:
        """Return cond with the negative branch's values of all keys; UserError if the pipeline made no such branch."""
        if self.family.label and "y" in cond:
            return {**cond, "y": torch.full_like(cond["y"], self.spec.classes)}
        plain = [key for key in cond if not key.startswith(NULL)]
        if missing := [key for key in plain if key in self.keys and NULL + key not in cond]:
            raise UserError(f"no {NULL}{missing[0]} in cond: the pipeline made no negative branch; call it with a "
                            "guidance above 1, and with a negative prompt if it needs one, unless the network takes "
                            "its guidance as an argument")  # fmt: skip
        return {**cond, **{key: cond[NULL + key] for key in plain if NULL + key in cond}}

    def _by_stage(self, x: Tensor, step: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        low = None if self.low is None else step < self.boundary
        if self.low is None or low is None or not low.any():
            return self._call(self.inner, x, step, cond, tap)
        if low.all():
            return self._call(self.low, x, step, cond, tap)
        out = torch.empty_like(x)
        for module, rows in ((self.inner, ~low), (self.low, low)):
            some = {key: cond[key][rows] for key in self.keys}
            out[rows] = self._call(module, x[rows], step[rows], some, tap)
        return out

    def _call(self, module: Any, x: Tensor, step: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        """Return the output, shaped and typed as x, of a network for states x at timesteps [B]."""
        family, rows = self.family, {key: cond[key] for key in self.keys}
        h = x.to(self.dtype)
        if self.appended_dim is not None:
            h = torch.cat([h, rows.pop(APPENDED).to(h)], self.appended_dim)
        given: dict[str, Any] = {
            key: [value.value] * len(x) if isinstance(value, EveryRow) else on_device(value, x.device)
            for key, value in self.constants.items()
        } | {key: value for key, value in rows.items() if not key.startswith(CONTROL)}
        if self.control is not None:
            given |= self._residuals(self.control, x, step, rows)
        if family.none_for_whole and bool(given[family.mask].all()):
            given[family.mask] = None
        for name in family.lists:
            lengths = given.pop(f"{name}.length").tolist()
            given[name] = [row[:length] for row, length in zip(given[name], lengths, strict=True)]
        state = list(h.unsqueeze(2)) if family.lists else h
        arguments = {**nest(given), family.x: state, family.t: self._network_time(family, module, step)}
        with self._under_engines(), self.taps.tapped(module, tap, number=int(module is self.low)):
            out = module(**arguments, return_dict=False)[0]
        out = torch.stack(out).squeeze(2) if family.lists else out
        out = call_site(tap, "final", lambda whole: whole, out)  # with learned variances
        out = out[tuple(slice(length) for length in x.shape)]  # without variances, and an image's tokens
        if out.shape != x.shape:
            raise UserError(f"{self.spec.kind} returned {shown(list(out.shape))} for a state {list(x.shape)}")
        return (out * family.sign).to(x.dtype)

    def _residuals(self, control: Control, x: Tensor, step: Tensor, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Return the network's arguments that are a ControlNet's results, zero in the rows in which it is not used."""
        active = control.active(step)
        if not bool(active.any()):
            return dict.fromkeys(control.results)
        family = control.family
        given = {key: on_device(value, x.device) for key, value in control.constants.items()}
        given |= {name: rows[key] for name, key in control.keys.items()}
        time = self._network_time(family, control.module, step)
        arguments = {**nest(given), family.x: x.to(control.dtype), family.t: time, "return_dict": False}
        results = control.module(**arguments)
        on = None if bool(active.all()) else active
        return {name: _kept(results[index], on) for name, index in control.results.items()}

    def _network_time(self, family: Family, module: Any, step: Tensor) -> Tensor:
        """Return a network's time at timesteps [B], in the order of the pipelines' roundings."""
        if family.rounded and self.time == "theirs":
            step = step.to(self.dtype)  # that of latents, after a step at the latest
        if family.unit == "sigma":
            time = step / self.steps
        elif family.unit == "clean":
            time = (self.steps - step) / self.steps
        else:
            time = step
        if family.time_factor:
            time = time * getattr(plain_module(module).config, family.time_factor)
        return time if self.token_times is None else time[:, None] * self.token_times.to(time)


def _kept(residual: Any, rows: Tensor | None) -> Any:
    """Return the residuals of a ControlNet, zero but in some rows [B]; None for all rows."""
    if rows is None or residual is None:
        return residual
    if isinstance(residual, Tensor):
        return residual * expand(rows.to(residual.dtype), residual)
    return type(residual)(_kept(one, rows) for one in residual)
