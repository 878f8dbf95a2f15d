"""Conditions of a pipeline by listening to its own call, which knows prompts, sizes, adapters and masks.

The call runs up to its first step with networks that answer zeros, so that it costs no evaluation of them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.foreign_schedule import is_edm
from gen.models.interop.pipelines.arguments import Flat, flatten, same, separate, with_equal_lengths
from gen.models.interop.pipelines.calling import Step, arguments_of, call_without_networks, zeros_for
from gen.models.interop.pipelines.controls import (
    CONTROL,
    Control,
    Residual,
    control_family,
    controls_of,
    residuals,
    window_of,
)
from gen.models.interop.pipelines.families import Family, family_of, networks_of

__all__ = ["APPENDED", "NULL", "Heard", "encode", "listen"]

NULL = "null."  # before the keys of the negative branch
WARNED: set[tuple[int, str]] = set()  # messages of diffusers in this process, by the handler that showed them
APPENDED = "appended"  # key of what the network gets behind the state: an image's tokens or channels


@dataclass(frozen=True, eq=False)
class Heard:
    """Arguments of a pipeline's network at the first step of a call, and its scheduler.

    Attributes:
        pipe: the pipeline.
        call: arguments of the call.
        name: of the network in the pipeline, "unet" or "transformer".
        family: of the network.
        cond: tensors [B, ...] by argument name, those of the negative branch under "null." and the name.
        constants: arguments that are no rows of a batch, by name.
        latents: state of the first step, [B, ...], in the dtype that the pipeline keeps it in; of a scheduler that
            shrinks exploding noise for the network, but for EDM's, as the variance preserving state that it gets.
        dtype: of the state as the network gets it.
        appended_dim: dimension along which cond["appended"] follows the state; None without.
        token_times: factors [T] on the time of each token; None where all have one time.
        doubled: whether the scheduler steps both branches' rows.
        scheduler: the pipeline's with the times of this call.
        timesteps: of all steps from that first one on, [N]; a pipeline that edits an image leaves out the first ones.
        encoded: what the pipeline's encode_prompt returned, call by call.
        control: its ControlNet, whose own arguments are in cond under "control."; None without.
    """

    pipe: Any
    call: Mapping[str, Any]
    name: str
    family: Family
    cond: Cond
    constants: Mapping[str, Any]
    latents: Tensor
    dtype: torch.dtype
    appended_dim: int | None
    token_times: Tensor | None
    doubled: bool
    scheduler: Any
    timesteps: Tensor
    encoded: Sequence[Any]
    control: Control | None = None


class NetworkCall(NamedTuple):
    """A call of a network: its name in the pipeline, its state and time, all other arguments by dotted name."""

    name: str
    x: Any
    t: Any
    arguments: Flat


@dataclass
class Recording:
    """What was seen of a pipeline's call up to its first step: the networks' calls, and results of encode_prompt.

    Attributes:
        controls: calls of ControlNets.
    """

    controls: list[NetworkCall] = field(default_factory=list)
    calls: list[NetworkCall] = field(default_factory=list)
    encoded: list[Any] = field(default_factory=list)


class FirstStep(Exception):
    """The first call of the scheduler's step, which ends the pipeline's call."""

    def __init__(self, step: Step):
        super().__init__()
        self.step = step


def encode(
    pipe: Any,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] | None = None,
    *,
    family: Family | None = None,
    **call: Any,
) -> Cond:
    """Return the condition of prompts, as the pipeline itself encodes them.

    Args:
        pipe: a pipeline of diffusers.
        prompts: B of them, or one.
        negative: prompts of the negative branch; None for what the pipeline takes.
        family: as of `listen`.
        **call: other arguments of the pipeline's call, such as height, width and guidance_scale.

    Returns:
        Tensors [B, ...], those of the negative branch under "null.".
    """
    given = {**call, "prompt": prompts} | ({} if negative is None else {"negative_prompt": negative})
    return listen(pipe, family=family, **given).cond


@torch.no_grad()
def listen(pipe: Any, *, family: Family | None = None, **call: Any) -> Heard:
    """Call a pipeline up to its first step, and return what its network and its scheduler got.

    Nothing stays attached to the pipeline, its networks or its scheduler, also where the call raises.

    Args:
        pipe: a pipeline of diffusers.
        family: of a network that the table has not.
        **call: arguments of pipe(...).

    Raises:
        UserError: for an unknown network, and for calls that two branches do not describe.
    """
    networks, controls = networks_of(pipe, family), controls_of(pipe)
    step, recording = _first_step(pipe, networks, controls, family, call)
    (name, x, t, _), rows = recording.calls[0], len(step.sample)
    family = family or family_of(networks[name])
    doubled = family.doubled and rows % 2 == 0 and same(x[: rows // 2], x[rows // 2 :])
    rows = rows // 2 if doubled else rows
    branches, constants = _branches(family, recording.calls, rows)
    scaled = getattr(step.scheduler, "scale_model_input", lambda sample, timestep: sample)
    state, appended_dim = scaled(step.sample, step.timestep)[:rows], None
    for branch in branches:
        appended_dim = _appended(branch, state)
    if appended_dim is None and "Inpaint" in type(pipe).__name__:
        raise UserError(f"{type(pipe).__name__} blends the image into the state after each step, which a loop of ours "
                        "would not: sample with image and mask of gen.load_diffusers instead")  # fmt: skip
    cond: Flat = {}
    for prefix, part in zip(("", NULL), with_equal_lengths(family, [b.arguments for b in branches]), strict=False):
        cond |= {prefix + key: value for key, value in part.items()}
    timesteps, control = _timesteps(step), None
    if controls:
        control = _control(pipe, controls, call, recording, constants, state, cond, timesteps)
        constants = {key: value for key, value in constants.items() if key not in control.results}
    return Heard(
        pipe=pipe, call=call, name=name, family=family, cond=cond,
        constants={key: value for key, value in constants.items() if key not in cond},
        latents=step.sample[:rows] if is_edm(step.scheduler) else state,  # Denoiser scales EDM's
        dtype=branches[0].x.dtype, appended_dim=appended_dim, token_times=_token_times(t), doubled=doubled,
        scheduler=step.scheduler, timesteps=timesteps, encoded=recording.encoded, control=control,
    )  # fmt: skip


def _control(
    pipe: Any,
    controls: Mapping[str, Any],
    call: Mapping[str, Any],
    recording: Recording,
    constants: Flat,
    state: Tensor,
    cond: Flat,
    timesteps: Tensor,
) -> Control:
    """Return the ControlNet of a pipeline; what it gets beside the network's own rows is added to cond."""
    if len(recording.controls) != 1:
        raise UserError(
            f"{type(pipe).__name__} called its ControlNet {len(recording.controls)} times in a step, not once"
        )
    heard, module = recording.controls[0], next(iter(controls.values()))
    family = control_family(module)
    branches, own = _branches(family, [heard], len(state))
    if any(_appended(branch, state) is not None for branch in branches):
        raise UserError(f"{type(pipe).__name__} gives its ControlNet more than the state")
    until = window_of(call, timesteps)
    prefixes = ["", NULL] if any(key.startswith(NULL) for key in cond) else [""]
    parts = {prefix: branches[min(i, len(branches) - 1)].arguments for i, prefix in enumerate(prefixes)}
    keys = dict[str, str]()
    for name in parts[""]:
        shared = all(same(part[name], cond.get(prefix + name)) for prefix, part in parts.items())
        keys[name] = name if shared else CONTROL + name
        if not shared:
            cond |= {prefix + CONTROL + name: part[name] for prefix, part in parts.items()}
    results = {name: value.index for name, value in constants.items() if isinstance(value, Residual)}
    return Control(module, family, own, keys, results, branches[0].x.dtype, until)


def _token_times(t: Any) -> Tensor | None:
    """Return the factors on the time of each token; UserError where some tokens keep a time of their own."""
    if not isinstance(t, Tensor) or t.ndim < 2:
        return None
    factors = t[0] / t.max()
    if not bool((factors == 1).all()):
        raise UserError("the pipeline gives tokens times of their own, as those do that hold a first frame: a loop of "
                        "ours would move them all")  # fmt: skip
    return factors


def _timesteps(step: Step) -> Tensor:
    """Return the timesteps from a step on, on the CPU."""
    listed, replaced = step.scheduler.timesteps, getattr(step.scheduler, "like", None)
    if replaced is not None and not isinstance(listed, Tensor):  # of gen.as_scheduler
        solver = type(step.scheduler.solver).__name__
        raise UserError(
            f"{solver} in place of {type(replaced).__name__} chooses its times as it goes, so no grid can be read; "
            "allowed: pipe.scheduler = pipe.scheduler.like, and sample(solver=...)"
        )
    timesteps = torch.as_tensor(listed).cpu()
    return timesteps[int((timesteps == float(step.timestep)).nonzero()[0]) :]


def _first_step(
    pipe: Any,
    networks: Mapping[str, Any],
    controls: Mapping[str, Any],
    family: Family | None,
    call: Mapping[str, Any],
) -> tuple[Step, Recording]:
    """Return the first step of a pipeline's call, and what was seen up to it."""
    recording, families = Recording(), {name: family or family_of(module) for name, module in networks.items()}
    families |= {name: control_family(module) for name, module in controls.items()}
    modules = {**networks, **controls}

    def forward(name: str, *args: Any, **kwargs: Any) -> Any:
        arguments, own = arguments_of(modules[name], args, kwargs), families[name]
        arguments.pop("return_dict", None)
        x, t = arguments.pop(own.x), arguments.pop(own.t)
        calls = recording.controls if name in controls else recording.calls
        calls.append(NetworkCall(name, x, t, flatten(arguments, own.lists)))
        if name in controls:
            return residuals(arguments)
        return zeros_for(networks[name], x)

    def end(step: Step) -> NoReturn:
        raise FirstStep(step)

    encoder = getattr(pipe, "encode_prompt", None)
    methods = {} if encoder is None else {"encode_prompt": (pipe, _keeping(encoder, recording.encoded))}
    try:
        with _each_warning_once():
            call_without_networks(pipe, call, modules, forward, end, methods)
    except FirstStep as first:
        if not recording.calls:
            raise UserError(f"{type(pipe).__name__} stepped before it evaluated {', '.join(networks)}") from None
        return first.step, recording
    raise UserError(f"{type(pipe).__name__} returned without a step of its scheduler: are there any steps to do?")


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Leave out warnings of diffusers that an earlier call had: a pipeline is called for every prompt and size."""

    def new(handler: logging.Handler, record: logging.LogRecord) -> bool:
        message = id(handler), record.getMessage()
        known = message in WARNED
        WARNED.add(message)
        return not known

    filters = [(handler, functools.partial(new, handler)) for handler in logging.getLogger("diffusers").handlers]
    for handler, its_filter in filters:
        handler.addFilter(its_filter)
    try:
        yield
    finally:
        for handler, its_filter in filters:
            handler.removeFilter(its_filter)


def _keeping(function: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    """Return a function that also appends its results to a list."""

    @functools.wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    return kept


def _branches(family: Family, calls: Sequence[NetworkCall], rows: int) -> tuple[list[NetworkCall], Flat]:
    """Return the positive and perhaps the negative branch, states [rows, ...] and rows only, and the constants."""
    if family.branches == "calls":
        if len(calls) > 2 or any(len(call.x) != rows for call in calls):
            raise UserError(f"the pipeline made {len(calls)} calls of its network in a step; at most 2 are branches")
        parts = [separate(family, call.arguments, rows) for call in calls]
        if len(parts) == 2 and (other := _other_constants(*parts)):
            raise UserError(f"{other} is no tensor with a row per sample, and differs between prompt and negative")
        return [_rows(family, c, p, 0, rows) for c, (p, _) in zip(calls, parts, strict=True)], parts[0][1]
    call, both = calls[0], len(calls[0].x)
    if both not in (rows, 2 * rows):
        raise UserError(f"the pipeline's batch has {both} rows for {rows} samples; known are one or two branches")
    of_rows, constants = separate(family, call.arguments, both)
    branches = [_rows(family, call, of_rows, i, rows) for i in range(both // rows)]
    return branches[::-1] if family.branches == "negative_first" else branches, constants


def _rows(family: Family, call: NetworkCall, of_rows: Flat, branch: int, rows: int) -> NetworkCall:
    """Return the rows of one branch of a call: its state as one tensor, and arguments."""
    x = torch.stack(call.x).squeeze(2) if isinstance(call.x, list) else call.x
    block, alternate = slice(branch * rows, (branch + 1) * rows), slice(branch, None, len(x) // rows)
    picked = {key: value[alternate if key in family.interleaved else block] for key, value in of_rows.items()}
    return NetworkCall(call.name, x[block], call.t, picked)


def _other_constants(one: tuple[Flat, Flat], two: tuple[Flat, Flat]) -> str:
    """Return the name of a constant that differs between two calls; "" if none does."""
    names = sorted((one[1].keys() | two[1].keys()) - (one[0].keys() | two[0].keys()))
    return next((name for name in names if not same(one[1].get(name), two[1].get(name))), "")


def _appended(branch: NetworkCall, latents: Tensor) -> int | None:
    """Move what follows the state to the branch's arguments; return the dimension along which it does."""
    given, own = branch.x.shape, latents.shape
    longer = [dim for dim in range(1, len(own)) if len(given) == len(own) and given[dim] > own[dim]]
    state = branch.x[tuple(slice(length) for length in own)] if len(given) == len(own) else branch.x
    if state.shape != own or len(longer) > 1:
        raise UserError(f"the network's state is {list(given)} and the scheduler's {list(own)}: they do not match")
    if not torch.allclose(state, latents.to(state), rtol=1e-3, atol=1e-3):
        raise UserError("the pipeline changes the state before its network gets it, as those do that hold a first "
                        "frame: a loop of ours would not")  # fmt: skip
    for dim in longer:
        branch.arguments[APPENDED] = branch.x.narrow(dim, own[dim], given[dim] - own[dim])
    return longer[0] if longer else None
