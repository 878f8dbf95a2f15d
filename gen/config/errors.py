"""Errors for the person at the keyboard: one line that says what was given and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["MissingDependency", "NonFinite", "UserError", "nearest"]


class UserError(ValueError):
    """A wrong input. `str()` is one line."""


class MissingDependency(UserError):
    """An optional package or file is not there. `str()` says how to get it."""


class NonFinite(RuntimeError):
    """A loss, gradient or sample became NaN or infinite. `str()` says where."""


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
