"""Values of dataclasses and arguments that users give: parts built, types and ranges checked, by their annotations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from gen.config.errors import UserError, nearest, shown
from gen.config.spec import build, convert, field_value
from gen.config.values import has_member

__all__ = ["THEIRS", "build_with", "check_arguments", "check_fields", "check_range"]

THEIRS = {  # arguments of pipelines of diffusers, and of other tools -> ours, whichever the function has
    "callback_on_step_end": ("callback",),
    "cfg_scale": ("guide",),
    "cfg_trunc_ratio": ("guide",),
    "cfg_truncation": ("guide",),
    "eta": ("solver",),
    "generator": ("seed",),
    "guidance_rescale": ("guide",),
    "guidance_scale": ("guide",),
    "latents": ("noise",),
    "mask_image": ("mask",),
    "negative_prompt": ("negative",),
    "num_images_per_prompt": ("images_per_prompt", "images_per_condition"),
    "num_inference_steps": ("steps",),
    "num_samples": ("n", "images_per_prompt"),
    "num_videos_per_prompt": ("images_per_prompt", "images_per_condition"),
    "output_type": ("decode",),
    "prompt": ("cond",),
    "return_dict": ("decode",),
    "sampler": ("solver",),
    "scheduler": ("solver",),
    "sigmas": ("grid",),
    "skip_guidance_layers": ("guide",),
    "timesteps": ("grid",),
    "true_cfg_scale": ("guide",),
}

P = ParamSpec("P")
R = TypeVar("R")


def check_fields(thing: Any, **intervals: str) -> None:
    """Build parts that are given as specs, and check every field against its annotation and its interval.

    To be called in __post_init__, so that JSON, TOML, the command line and Python are held to the same.

    Args:
        thing: the frozen dataclass; fields are replaced by what `gen.config.spec.field_value` makes of them.
        **intervals: "[0, 1)" or "(low, high]" by field: numbers, names of other fields, inf for no bound. None is
            allowed in any; of a tuple all numbers are checked.

    Raises:
        UserError: names the first field that is wrong, and what is allowed.
    """
    for field in dataclasses.fields(thing):
        if field.init:
            object.__setattr__(thing, field.name, field_value(type(thing), field, getattr(thing, field.name)))
    for key, interval in intervals.items():
        others = {name: getattr(thing, name) for name in re.findall(r"[a-z]\w*", interval) if name != "inf"}
        bounds = interval
        for name, value in others.items():
            bounds = re.sub(rf"\b{name}\b", str(value), bounds)
        note = "".join(f", {name} = {value}" for name, value in others.items())
        check_range(getattr(thing, key), bounds, f"{type(thing).__name__}: {key}", note)


def check_arguments(**intervals: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function to check its arguments as `check_fields` does fields.

    Defaults, arguments that may be one thing or a sequence of them, and those whose annotation is only there for type
    checkers pass as they are.

    Args:
        **intervals: by argument.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                known = [name for name in signature.parameters if name != "self"]
                unknown = [key for key in kwargs if key not in known]
                ours = next((name for name in THEIRS.get(unknown[0], ()) if name in known), "") if unknown else ""
                advice = f" It is {ours} here." if ours else f" {nearest(unknown[0], known)}" if unknown else ""
                raise TypeError(f"{function.__name__}: {error}.{advice}") from None
            for name, value in given.arguments.items():
                parameter, where = signature.parameters[name], f"{function.__name__}: {name}"
                if value is parameter.default or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    continue
                given.arguments[name] = convert(value, _annotation(function, name), where)
                if name in intervals:
                    check_range(given.arguments[name], intervals[name], where)
            return function(*given.args, **given.kwargs)

        return checked

    return decorate


def build_with(folder: str, spec: object, needed: str, where: str) -> Any:
    """Build the part that an argument stands for.

    Args:
        folder: whose names are allowed.
        spec: a name, a spec or an object.
        needed: members that the part must have, "shape open".
        where: the name of the argument, for the error.

    Raises:
        UserError: as `gen.config.spec.build`, and for what lacks a member.
    """
    built = build(folder, spec)
    if isinstance(built, type) or not all(has_member(built, name) for name in needed.split()):
        allowed = f"a name or a spec of `gen list {folder}` or an object with {' and '.join(needed.split())}"
        raise UserError(f"{where}: got {shown(spec)}, expected {allowed}")
    return built


@functools.cache
def _annotation(function: Callable[..., Any], name: str) -> Any:
    """Return an argument's evaluated annotation; Any where it cannot be, or has a sequence or a part beside others."""
    alone = types.SimpleNamespace(__annotations__={name: function.__annotations__.get(name, Any)})
    try:
        hint = typing.get_type_hints(alone, inspect.unwrap(function).__globals__)[name]
    except NameError:
        return Any
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    own = (typing.get_origin(kind) is Sequence or getattr(kind, "_is_protocol", False) for kind in kinds)
    mixed = len(kinds) > 1 and any(own)
    return Any if mixed else hint


def check_range(value: Any, interval: str, where: str, note: str = "") -> None:
    """Check that a number, or every number of a tuple, lies in an interval.

    Args:
        value: of the right type already; what is no number passes.
        interval: such as "[0, 1)" or "[1, inf)".
        where: the name of the field or argument, for the error.
        note: the end of the error's line.

    Raises:
        UserError: says what is allowed.
    """
    numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, (int, float))]
    if all(_inside(number, interval) for number in numbers):
        return
    raise UserError(f"{where} = {shown(value)}; it must be in {interval}{note}")


def _inside(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    return above and (number <= high if interval[-1] == "]" else number < high)
