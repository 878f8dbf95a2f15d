"""The state of an optimiser as named tensors and JSON values, and the proof that nothing else of it matters."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import Json

__all__ = ["check_resumable", "dump", "load"]

STEPS = 6  # before and after the resume that is tried
IMPLEMENTATION = ("foreach", "fused")  # of a group: the device's, not the state's
SIDE = 64  # the largest side of a parameter in it


def dump(optim: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> tuple[Json, dict[str, Tensor]]:
    """Return what an optimiser knows after its steps: `state` of every parameter, and the values of its groups.

    Args:
        optim: the optimiser.
        names: of its parameters.

    Returns:
        JSON of numbers, text and containers, in which {"tensor": name} stands for a tensor, and the tensors by name;
        one in a parameter's state is called "blocks.0.attn.qkv.weight/exp_avg".

    Raises:
        UserError: for any other object among them.
    """
    tensors: dict[str, Tensor] = {}
    state: Json = {}
    for parameter, values in optim.state.items():
        if parameter not in names:
            raise UserError(f"its state has {str(parameter)[:40]!r}, which is no parameter")
        name = names[parameter]
        encoded = {key: _encode(value, f"{name}/{key}", tensors) for key, value in values.items()}
        state[name] = {key: value for key, value in encoded.items() if value != {"tensor": f"{name}/{key}"}}
    groups = [
        {key: _encode(value, f"groups.{i}/{key}", tensors) for key, value in group.items() if key != "params"}
        for i, group in enumerate(optim.param_groups)
    ]
    return {"state": {name: values for name, values in state.items() if values}, "groups": groups}, tensors


def load(
    optim: torch.optim.Optimizer, names: Mapping[Tensor, str], values: Json, tensors: Mapping[str, Tensor]
) -> None:
    """Give a new optimiser what `dump` returned of another one; tensors keep their dtype.

    torch's own load_state_dict would cast a parameter's state to the dtype of the parameter.

    Args:
        optim: changed in place; it has made no step yet.
        names: of its parameters.
        values, tensors: what `dump` returned.
    """
    groups = [{key: _decode(value, tensors) for key, value in group.items()} for group in values["groups"]]
    for group, saved in zip(optim.param_groups, groups, strict=True):
        group.update({key: value for key, value in saved.items() if key not in IMPLEMENTATION})
        on_device = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            name = names[parameter]
            direct = {key.rpartition("/")[2]: key for key in tensors if key.rpartition("/")[0] == name}
            own = {key: {"tensor": where} for key, where in direct.items()} | values["state"].get(name, {})
            for key, value in own.items():
                decoded = _decode(value, tensors)
                if isinstance(decoded, Tensor) and (key != "step" or on_device):
                    decoded = decoded.to(parameter.device)
                optim.state[parameter][key] = decoded


def check_resumable(
    build: Callable[[Sequence[Json]], torch.optim.Optimizer], groups: Sequence[Json], lr: float
) -> None:
    """Check that an optimiser, saved and loaded between two steps, goes on with the same bits as if it had not been.

    Two small copies of each group make a few steps on made-up gradients, one of them interrupted.

    Args:
        build: builds the optimiser for parameter groups.
        groups: the groups it is to have.
        lr: a learning rate for the steps.

    Raises:
        UserError: for a state that cannot be saved, that is not all there is, or a step that needs more than gradients.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            whole = _steps(*_built(build, groups), lr, range(2 * STEPS))
            parameters, optim = _built(build, groups)
            half = _steps(parameters, optim, lr, range(STEPS))
            values, tensors = dump(optim, _numbered(half))
            values, tensors = json.loads(json.dumps(values, allow_nan=False)), copy.deepcopy(tensors)
            parameters, again = _built(build, groups)
            for parameter, value in zip(parameters, half, strict=True):
                parameter.data.copy_(value.data)
            load(again, _numbered(parameters), values, tensors)
            parts = _steps(parameters, again, lr, range(STEPS, 2 * STEPS))
        except (TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise UserError(f"it cannot make a step here: {' '.join(str(error).split())}") from error
    if not all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True)):
        raise UserError("a part of its state is neither in `state` nor in `param_groups`, and would be lost")


def _built(
    build: Callable[[Sequence[Json]], torch.optim.Optimizer], groups: Sequence[Json]
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Return small parameters, one of each dimension in each group, and their optimiser."""
    small: list[Json] = []
    for group in groups:
        shapes = {p.ndim: (tuple(min(side, SIDE) for side in p.shape), p) for p in reversed(group["params"])}
        made = [torch.ones(shape, dtype=p.dtype, device=p.device) for shape, p in shapes.values()]
        small.append({**group, "params": [nn.Parameter(value) for value in made]})
    return [p for group in small for p in group["params"]], build(small)


def _steps(parameters: list[nn.Parameter], optim: torch.optim.Optimizer, lr: float, steps: range) -> list[nn.Parameter]:
    """Make the numbered steps as the trainer makes them, and return the parameters."""
    for step in steps:
        torch.manual_seed(step)
        for parameter in parameters:
            phase = torch.arange(parameter.numel(), device=parameter.device).reshape(parameter.shape)
            parameter.grad = torch.sin(0.7 * phase + 1.3 * step).to(parameter.dtype)
        for group in optim.param_groups:
            group["lr"] = lr * group["scale"]
        optim.step()
    return parameters


def _numbered(parameters: Sequence[nn.Parameter]) -> dict[Tensor, str]:
    return {parameter: str(i) for i, parameter in enumerate(parameters)}


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON for a value; tensors in it go to `tensors` under names that begin with `where`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{where}/{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        pairs = enumerate(value.items())
        return {"dict": [[_encode(k, where, tensors), _encode(v, f"{where}/{i}", tensors)] for i, (k, v) in pairs]}
    key = where.rpartition("/")[2]
    raise UserError(f"its {key!r} is a {type(value).__name__}, not tensors, numbers, text, or lists and dicts of them")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "float":
            return float(inner)
        case "tuple":
            return tuple(_decode(part, tensors) for part in inner)
        case _:
            return {_decode(k, tensors): _decode(v, tensors) for k, v in inner}
