"""What went wrong, for the person at the keyboard: one line, what was given and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["MissingDependency", "NonFinite", "UserError", "nearest"]


class UserError(ValueError):
    """Something that was given is wrong. `str()` is one line."""


class MissingDependency(UserError):
    """An optional package or file is not there. `str()` says how to get it."""


class NonFinite(RuntimeError):
    """A loss, gradient or sample became NaN or infinite. `str()` says where."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: "Did you mean 'heun'? Allowed: euler, heun."."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed) or 'nothing'}."
