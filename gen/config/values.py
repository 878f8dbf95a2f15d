"""Single values against annotations: numbers, text, paths, and objects against classes and Protocols."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from gen.config.errors import UserError
from gen.config.reading import parse_json

__all__ = ["SCALARS", "fits", "has_member", "hints_of", "in_words", "literals", "members", "parse_text"]

WORDS: dict[object, tuple[str, str]] = {  # for any value, and for a number
    bool: ("true or false",) * 2,
    int: ("a whole number", "a whole number of 64 bits"),
    float: ("a number", "a finite number"),
    str: ("text",) * 2,
    None: ("none",) * 2,
    type(None): ("none",) * 2,
}


def fits(value: object, hint: Any) -> bool:
    """Return whether a value is of a class, or has the methods of a Protocol; True for what is neither.

    Args:
        value: any object.
        hint: an annotation without arguments.
    """
    if hint in (Any, object) or not inspect.isclass(hint):
        return True
    if getattr(hint, "_is_protocol", False):
        return not isinstance(value, type) and all(has_member(value, name) for name in members(hint))
    return isinstance(value, hint) and not isinstance(value, type)


def has_member(value: object, name: str) -> bool:
    """Return whether an object has a member; a property is not asked, since it may read a file.

    Args:
        value: any object.
        name: the member's.
    """
    return inspect.getattr_static(value, name, None) is not None


def members(protocol: Any) -> list[str]:
    """Return what a Protocol demands: abstract methods, or all if none is; of a runtime one all that it declares.

    Args:
        protocol: a class; one that is no Protocol demands nothing.
    """
    if not getattr(protocol, "_is_protocol", False):
        return []
    own = [n for n, v in vars(protocol).items() if inspect.isfunction(v) and (n[0] != "_" or n == "__call__")]
    declared = [n for n in vars(protocol) if n[0] != "_"] if getattr(protocol, "_is_runtime_protocol", False) else []
    return declared or sorted(getattr(protocol, "__abstractmethods__", ())) or own


@functools.cache
def hints_of(owner: Any) -> dict[str, Any]:
    """Return the evaluated annotations of a dataclass by field.

    Args:
        owner: the class.
    """
    return typing.get_type_hints(owner)


def literals(hint: object) -> tuple[object, ...]:
    """Return the values that the Literals in a hint allow as they are, "none" and "true" among them.

    Args:
        hint: an annotation, evaluated.
    """
    inner = typing.get_args(hint)
    return inner if typing.get_origin(hint) is typing.Literal else tuple(v for h in inner for v in literals(h))


def parse_text(text: str) -> Any:
    """Parse text where none is wanted: JSON, a number such as .9, true, false, none; else the text itself.

    Args:
        text: as typed.
    """
    try:
        return parse_json(text, repr(text))
    except UserError:
        if text.lstrip().startswith(("{", "[")):
            raise
        if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):  # .9 is no JSON, but a number
            return float(text)
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _int(value: Any) -> tuple[int, ...]:
    try:
        whole = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        return ()
    return (whole,) if not isinstance(value, bool) and -(2**63) <= whole < 2**63 else ()


def _float(value: Any) -> tuple[float, ...]:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return ()
    try:
        number = float(value)
    except OverflowError:
        return ()
    return (number,) if math.isfinite(number) else ()


def _path(value: Any) -> tuple[Path, ...]:
    text = str(value) if isinstance(value, (str, PurePath)) else ""
    return (Path(value),) if text and "\0" not in text else ()


SCALARS: dict[object, Callable[[Any], tuple[Any, ...]]] = {  # the value in its type, or nothing
    Any: lambda value: (value,),
    bool: lambda value: (value,) if isinstance(value, bool) else (),
    float: _float,
    int: _int,
    None: lambda value: (None,) if value is None else (),
    type(None): lambda value: (None,) if value is None else (),
    str: lambda value: (str(value),) if isinstance(value, (str, PurePath)) else (),
    Path: _path,
}


def in_words(hint: Any, value: object = None) -> str:
    """Return an annotation as a message says it: "a number or none".

    Args:
        hint: the annotation, evaluated.
        value: that is refused; of a number it is said which are allowed.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(in_words(one, value) for one in typing.get_args(hint))
    if hint in WORDS:
        return WORDS[hint][isinstance(value, numbers.Number)]
    plain = inspect.isclass(hint) and not typing.get_args(hint)
    return str(hint.__name__) if plain else re.sub(r"[\w.]+\.(?=\w)", "", str(hint))
