"""Dispatch of an op to the first back end that accepts a call, with the reasons of those that do not.

A back end that cannot compute all that a call asks for refuses it and says why; nothing is dropped or repaired in
silence. Back ends that are compositions of PyTorch are traced by torch.compile like any other code; those that are not
are custom ops of torch.library with fake and autograd registrations. Both keep a compiled graph whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, ParamSpec, TypeVar

__all__ = ["Backend", "Op", "Refused", "accepts_all", "explain", "op"]

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")


class Refused(ValueError):
    """No back end, or not the one that was named, accepts a call; `str()` is one line."""


def accepts_all(call: object) -> None:
    """Return no reason against any call.

    Args:
        call: the complete arguments, unused.
    """


@dataclass(frozen=True, eq=False)
class Backend(Generic[C, R]):
    """One way to compute an op, whose complete arguments are one value, the call.

    Attributes:
        name: as `Op.only` and `explain` have it.
        run: call -> result.
        incompatible_reason: call -> why this back end cannot compute it, or None; by default it computes every call.
        detail: call -> what `explain` adds where this back end is chosen, such as the kernel that PyTorch would pick.
    """

    name: str
    run: Callable[[C], R]
    incompatible_reason: Callable[[C], str | None] = accepts_all
    detail: Callable[[C], str] | None = None


@dataclass(frozen=True, eq=False)
class Op(Generic[P, C, R]):
    """An operation, called with the arguments of `complete`.

    Attributes:
        name: for messages.
        complete: checks the arguments and returns the call that every back end is given whole.
        backends: in order of preference.
    """

    name: str
    complete: Callable[P, C]
    backends: tuple[Backend[C, R], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.complete.__doc__)
        object.__setattr__(self, "__signature__", inspect.signature(self.complete))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        call = self.complete(*args, **kwargs)
        reasons = []
        for backend in self.backends:
            reason = backend.incompatible_reason(call)
            if reason is None:
                return backend.run(call)
            reasons.append(f"{backend.name} refuses: {reason}")
        raise Refused(f"{self.name}: {'; '.join(reasons)}")

    def only(self, backend: str) -> Op[P, C, R]:
        """Return the same op with this back end alone: it runs, or its refusal is raised."""
        kept = tuple(b for b in self.backends if b.name == backend)
        if not kept:
            allowed = ", ".join(b.name for b in self.backends)
            raise Refused(f"{self.name} has no backend {backend!r}. Allowed: {allowed}.")
        return replace(self, backends=kept)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, str]:
        """Return for each back end, in order, "chosen (detail)", "accepts" or "refuses: reason"; run nothing."""
        call, answers = self.complete(*args, **kwargs), {}
        chosen = False
        for backend in self.backends:
            reason = backend.incompatible_reason(call)
            if reason is not None:
                answers[backend.name] = f"refuses: {reason}"
            elif chosen:
                answers[backend.name] = "accepts"
            else:
                chosen = True
                answers[backend.name] = f"chosen ({backend.detail(call)})" if backend.detail else "chosen"
        return answers


def op(*backends: Backend[C, R]) -> Callable[[Callable[P, C]], Op[P, C, R]]:
    """Return the decorator that makes an Op of a function from its arguments to the complete call.

    Args:
        *backends: in order of preference.
    """

    def decorate(complete: Callable[P, C]) -> Op[P, C, R]:
        return Op(complete.__name__, complete, backends)

    return decorate


def explain(op: Op[P, C, R], *args: P.args, **kwargs: P.kwargs) -> None:
    """Print `Op.explain` of a call as a table; run nothing.

    Args:
        op: the op.
        *args, **kwargs: its arguments.
    """
    answers = op.explain(*args, **kwargs)
    width = max(map(len, answers))
    print("\n".join([op.name, *(f"  {name:{width}}  {answer}" for name, answer in answers.items())]))
