"""Errors for the person at the keyboard: one line that says what was given and what is allowed."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

__all__ = ["MissingDependency", "NonFinite", "UserError", "counted", "nearest", "printable", "shown"]

BIDI = {*"\u200e\u200f\u061c", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}  # turn the text about


class UserError(ValueError):
    """A wrong input. `str()` is one line, and harmless on a terminal whatever a file's name holds."""

    def __str__(self) -> str:
        return printable(super().__str__())


class MissingDependency(UserError):
    """An optional package or file is not there. `str()` says how to get it."""


class NonFinite(RuntimeError):
    """A loss, gradient or sample became NaN or infinite. `str()` says where."""


def printable(text: str, keep: str = "") -> str:
    """Return text with characters that a terminal would obey, and halves of surrogate pairs, as backslash escapes.

    Args:
        text: any text.
        keep: control characters that stay, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI


def counted(n: int, one: str, many: str) -> str:
    """Return "1 file", "2 files"; "" for none.

    Args:
        n: how many.
        one, many: the noun.
    """
    return f"{n} {one if n == 1 else many}" if n else ""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return the tail of an error message: "Did you mean 'heun'? Allowed: euler, heun.".

    Args:
        given: the wrong name.
        allowed: the valid names.
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed) or 'nothing'}."


def shown(value: object, longest: int = 100) -> str:
    """Return a value as it stands in an error message: its repr on one line, cut; of a class that it is one.

    Args:
        value: any object.
        longest: characters, at most.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}, no object of it, such as {value.__name__}()"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of over 4300 digits has no repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
