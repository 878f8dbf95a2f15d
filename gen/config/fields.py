"""Fields of a dataclass that is written in specs: parts built, words and numbers checked."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from gen.config.errors import UserError, nearest
from gen.config.spec import build_parts

__all__ = ["check_fields"]


def check_fields(thing: Any, **intervals: str) -> None:
    """Build parts that are given as specs, and check that words are allowed and numbers lie in their intervals.

    To be called in __post_init__, so that JSON, the command line and Python are held to the same.

    Args:
        thing: the frozen dataclass.
        **intervals: "[0, 1)" by field, the end inf for no bound. None is allowed in any; of a tuple all numbers are
            checked.

    Raises:
        UserError: names the first field that is wrong, and what is allowed.
    """
    build_parts(thing)
    name, hints = type(thing).__name__, typing.get_type_hints(type(thing))
    for field in dataclasses.fields(thing):
        value, words = getattr(thing, field.name), typing.get_args(hints[field.name])
        if isinstance(value, list):
            object.__setattr__(thing, field.name, tuple(value))
        elif typing.get_origin(hints[field.name]) is typing.Literal and value not in words:
            raise UserError(f"{name}: {field.name} = {value!r}. {nearest(str(value), words)}")
    for key, interval in intervals.items():
        value = getattr(thing, key)
        if not all(_inside(v, interval) for v in (value if isinstance(value, tuple) else (value,)) if v is not None):
            raise UserError(f"{name}: {key} = {value!r}; it must be in {interval}")


def _inside(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    return above and (number <= high if interval[-1] == "]" else number < high)
