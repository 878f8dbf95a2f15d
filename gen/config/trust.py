"""Trust in names: whose "module:Class" names are followed.

What the user types or writes (a command line, Python, the file of a recipe) is followed. What a checkpoint, a record, a
run folder or a store of pairs names is code of whoever wrote it: it is followed only if this call allows it, by
`--allow my_pkg` or `allow=("my_pkg",)`. Names of gen's own plug-ins are always followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from gen.config.errors import UserError

__all__ = ["allowing", "check_trusted", "external_names", "names_from"]

_allowed: ContextVar[frozenset[str]] = ContextVar("_allowed", default=frozenset())
_source: ContextVar[object] = ContextVar("_source", default=None)


@contextmanager
def allowing(names: Iterable[str]) -> Iterator[None]:
    """Follow names that files give, if they are of these packages, within.

    Args:
        names: packages ("my_pkg"), modules ("my_pkg.mod") or single classes ("my_pkg.mod:Class").

    Raises:
        UserError: for what is none of these.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if not isinstance(name, str) or not all(map(str.isidentifier, name.replace(":", ".").split("."))):
            raise UserError(f"allow = {name!r}; allowed: a package, my_pkg, or a class, my_pkg.my_module:Class")
    token = _allowed.set(_allowed.get() | frozenset(given))
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def names_from(source: object) -> Iterator[None]:
    """Hold names to what is allowed, within: they are a file's.

    Args:
        source: the file or folder, for the message; None for what the user wrote.
    """
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def check_trusted(name: str) -> None:
    """Raise UserError for a name that a file gives and nobody allows.

    Args:
        name: "module:Class".
    """
    source, module = _source.get(), name.partition(":")[0]
    parts = module.split(".")
    if source is not None and not _allowed.get() & {name, *(".".join(parts[: i + 1]) for i in range(len(parts)))}:
        raise UserError(
            f"{source} names {name!r}, which would run the module {module!r}: if you trust that code, allow it with "
            f"--allow {parts[0]}, in Python allow=({parts[0]!r},)"
        )


def external_names(spec: object) -> frozenset[str]:
    """Return the names "module:Class" in a spec.

    Args:
        spec: JSON values.
    """
    if isinstance(spec, Mapping):
        own = spec.get("name")
        inner = frozenset[str]().union(*map(external_names, spec.values()))
        return inner | {own} if isinstance(own, str) and ":" in own else inner
    return frozenset[str]().union(*map(external_names, spec)) if isinstance(spec, (list, tuple)) else frozenset()
