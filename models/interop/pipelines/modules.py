"""The value that goes through any module: its first argument, and the tensors that it returns as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ModuleStream"]

NAMES = ("hidden_states", "sample", "x", "input_tensor")  # of a first argument that is given by keyword

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class ModuleStream:
    """The first argument of a module, and its output as one tensor: streams [B, T, D] one after the other."""

    def __init__(self) -> None:
        self.known: dict[torch.Size, Any] = {}  # input's shape -> the output, on the meta device

    def read(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the first argument of a call; a list of rows as one tensor."""
        value = args[0] if args else kwargs[self._name(kwargs)]
        return torch.stack(list(value)) if isinstance(value, list) else value

    def write(self, args: Args, kwargs: Kwargs, value: Tensor) -> tuple[Args, Kwargs]:
        """Return the arguments of the call with another first one."""
        given: Any = args[0] if args else kwargs[self._name(kwargs)]
        new = list(value.unbind()) if isinstance(given, list) else value
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, self._name(kwargs): new})

    def remember(self, out: Any, args: Args, kwargs: Kwargs) -> None:
        """Remember the form of an output, for `replaced` and `blank`."""
        shape = self.read(args, kwargs).shape
        if shape not in self.known:
            self.known[shape] = _mapped(out, lambda tensor: torch.empty_like(tensor, device="meta"))

    def output(self, out: Any, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the tensors of an output as one, and remember their form."""
        self.remember(out, args, kwargs)
        return _joined(out)

    def replaced(self, value: Tensor, args: Args, kwargs: Kwargs) -> Any:
        """Return an output of the module's own form that holds a value."""
        return _split(self.known[self.read(args, kwargs).shape], value)

    def blank(self, args: Args, kwargs: Kwargs) -> Any:
        """Return zeros of the output's form; None if the module has not been computed on such an input."""
        h = self.read(args, kwargs)
        known = self.known.get(h.shape)
        return None if known is None else _mapped(known, lambda tensor: torch.zeros_like(tensor, device=h.device))

    @staticmethod
    def _name(kwargs: Kwargs) -> str:
        return next(name for name in NAMES if name in kwargs)


def _mapped(out: Any, change: Any) -> Any:
    """The same form with every tensor changed."""
    if isinstance(out, Tensor):
        return change(out)
    if isinstance(out, Mapping):
        return type(out)(**{key: _mapped(value, change) for key, value in out.items()})
    return type(out)(_mapped(value, change) for value in out) if isinstance(out, (tuple, list)) else out


def _joined(out: Any) -> Tensor:
    """All tensors of an output as one: rows of a list stacked, streams of a tuple along their tokens."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, list):
        return torch.stack(out)
    parts = [_joined(v) for v in (out.values() if isinstance(out, Mapping) else out) if isinstance(v, (Tensor, list))]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _split(like: Any, value: Tensor) -> Any:
    """The inverse of `_joined`."""
    if isinstance(like, Tensor):
        return value
    if isinstance(like, list):
        return list(value.unbind())
    entries = like.items() if isinstance(like, Mapping) else enumerate(like)
    tensors = {key: v for key, v in entries if isinstance(v, (Tensor, list))}
    sizes = [_joined(v).shape[1] for v in tensors.values()] if len(tensors) > 1 else []
    parts = dict(zip(tensors, value.split(sizes, 1) if sizes else [value], strict=True))
    if isinstance(like, Mapping):
        return type(like)(**{key: _split(v, parts[key]) if key in parts else v for key, v in like.items()})
    return tuple(_split(v, parts[key]) if key in parts else v for key, v in enumerate(like))
