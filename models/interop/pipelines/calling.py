"""A pipeline's call without its networks: the machinery of listening and of decoding."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.models.interop.pipelines.families import plain_module

__all__ = ["Step", "arguments_of", "call_without_networks", "zeros_for"]


class Step(NamedTuple):
    """The arguments of a scheduler's step that all schedulers have.

    Attributes:
        scheduler: whose times are set.
        sample: the state, [B, ...].
        timestep: as the pipeline gave it.
    """

    scheduler: Any
    sample: Tensor
    timestep: Any


class NetworkOutput(NamedTuple):
    """A network's output, read by name or as a tuple."""

    sample: Any


def zeros_for(module: Any, x: Any) -> NetworkOutput:
    """Return an output of zeros for a state.

    Args:
        module: the network, which may have variances behind its prediction.
        x: tensor, or list of tensors.
    """
    if isinstance(x, list):
        return NetworkOutput([torch.zeros_like(v) for v in x])
    zeros = torch.zeros_like(x)
    variances = getattr(plain_module(module).config, "out_channels", None) == 2 * x.shape[1]
    return NetworkOutput(torch.cat([zeros, zeros], 1) if variances else zeros)


def arguments_of(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network's call by name.

    Args:
        module: the network.
        args, kwargs: of the call.
    """
    own = plain_module(module)
    bound = inspect.signature(type(own).forward).bind(own, *args, **kwargs)
    arguments = dict(list(bound.arguments.items())[1:])  # without self
    return arguments | arguments.pop("kwargs", {})


def call_without_networks(
    pipe: Any,
    call: Mapping[str, Any],
    networks: Mapping[str, Any],
    forward: Callable[..., Any],
    step: Callable[[Step], Any],
    methods: Mapping[str, tuple[Any, Callable[..., Any]]],
) -> Any:
    """Call a pipeline with other functions in place of its networks and its scheduler's step, and put all back.

    The scheduler in use is a shallow copy; the pipeline's own is not touched.

    Args:
        pipe: a pipeline of diffusers.
        call: arguments of pipe(...).
        networks: its networks and ControlNets by name.
        forward: called as forward(name, *args, **kwargs) for a network.
        step: called for the scheduler's step.
        methods: further methods, by any name: the object, and the function that is put in place of its method of that
            name.

    Returns:
        What the pipeline returns.
    """
    scheduler = copy.copy(pipe.scheduler)
    parameters = inspect.signature(scheduler.step)

    @functools.wraps(scheduler.step)  # pipelines inspect its signature
    def stepping(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs).arguments
        return step(Step(scheduler, given["sample"], given["timestep"]))

    changes: list[tuple[Any, str, Any]] = [
        (scheduler, "step", stepping),
        (pipe, "scheduler", scheduler),
        (pipe, "_progress_bar_config", {"disable": True}),
        *((owner, name, function) for name, (owner, function) in methods.items()),
    ]
    for name, module in networks.items():
        hooks = {key: OrderedDict[int, Any]() for key in ("_forward_pre_hooks", "_forward_hooks")}
        instead = {"forward": functools.partial(forward, name), "_compiled_call_impl": None, **hooks}
        changes += [(module, attribute, value) for attribute, value in instead.items()]
    try:
        with _replaced(changes):
            return pipe(**call)
    finally:
        if getattr(pipe, "_all_hooks", ()):  # models that went to the device for this call go back
            pipe.maybe_free_model_hooks()


@contextmanager
def _replaced(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes of objects, past their __setattr__, and put back what was there."""
    missing = object()
    before = [(vars(owner), name, vars(owner).get(name, missing)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            vars(owner)[name] = value
        yield
    finally:
        for where, name, value in before:
            if value is missing:
                where.pop(name, None)
            else:
                where[name] = value
