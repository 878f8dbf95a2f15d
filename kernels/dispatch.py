"""Which backend answers a call, and why: an op asks its backends in a stated order, and the first willing one runs.

A backend that cannot do all that a call asks for refuses it and says why; nothing is dropped or repaired in silence.
Backends that are compositions of PyTorch are traced by torch.compile like any other code; those that are not are
custom ops of torch.library with fake and autograd registrations. Both keep a compiled graph whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

__all__ = ["Backend", "Op", "Refused", "explain"]

P = ParamSpec("P")
R = TypeVar("R")


class Refused(ValueError):
    """No backend, or not the one that was asked for, takes a call. `str()` is one line."""


@dataclass(frozen=True, eq=False)
class Backend(Generic[R]):
    """One way to compute an op.

    refuses: the op's complete arguments -> why not, or None. run: the same arguments -> the result. detail: the same
    arguments -> what `explain` adds where this backend is chosen, such as the kernel that PyTorch would pick.
    """

    name: str
    refuses: Callable[..., str | None]
    run: Callable[..., R]
    detail: Callable[..., str] | None = None


@dataclass(frozen=True, eq=False)
class Op(Generic[P, R]):
    """An operation: called like the function `call`, which checks the arguments and completes them to a tuple.

    Every backend is given that whole tuple. The order of `backends` is the order in which they are asked.
    """

    name: str
    call: Callable[P, tuple[Any, ...]]
    backends: tuple[Backend[R], ...]

    def __post_init__(self) -> None:
        wanted = list(inspect.signature(self.call).parameters)
        for backend in self.backends:
            for function in (backend.refuses, backend.run, backend.detail or backend.run):
                given = list(inspect.signature(function).parameters)
                if given != wanted:
                    raise TypeError(f"{self.name}: {backend.name} takes {given}; the op's arguments are {wanted}")
        object.__setattr__(self, "__doc__", self.call.__doc__)
        object.__setattr__(self, "__signature__", inspect.signature(self.call))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        complete = self.call(*args, **kwargs)
        reasons = []
        for backend in self.backends:
            reason = backend.refuses(*complete)
            if reason is None:
                return backend.run(*complete)
            reasons.append(f"{backend.name} refuses: {reason}")
        raise Refused(f"{self.name}: {'; '.join(reasons)}")

    def only(self, backend: str) -> Op[P, R]:
        """The same op with this backend alone: it runs, or its refusal is raised."""
        kept = tuple(b for b in self.backends if b.name == backend)
        if not kept:
            raise Refused(
                f"{self.name} has no backend {backend!r}. Allowed: {', '.join(b.name for b in self.backends)}."
            )
        return replace(self, backends=kept)

    def verdicts(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, str]:
        """Each backend, in the order of asking, and what becomes of it: "chosen", "willing" or "refuses: why"."""
        complete, found = self.call(*args, **kwargs), {}
        chosen = False
        for backend in self.backends:
            reason = backend.refuses(*complete)
            if reason is not None:
                found[backend.name] = f"refuses: {reason}"
            elif chosen:
                found[backend.name] = "willing"
            else:
                chosen = True
                found[backend.name] = f"chosen{'' if backend.detail is None else f' ({backend.detail(*complete)})'}"
        return found


def explain(op: Op[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Prints every backend of the op with what becomes of it in this call; runs nothing."""
    verdicts = op.verdicts(*args, **kwargs)
    width = max(map(len, verdicts))
    print("\n".join([op.name, *(f"  {name:{width}}  {verdict}" for name, verdict in verdicts.items())]))
