"""The state dicts of a file: where they are, which are averages, and which one is meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gen.config.errors import UserError
from gen.config.pickles import Record, as_tensor, module_attributes, module_state

__all__ = ["Candidate", "State", "choose", "find_states"]

State = Mapping[str, Tensor]

AVERAGES = {"ema", "emas", "ewma", "swa", "average", "averaged", "avg", "shadow", "polyak"}
COUNTERS = {"decay", "num_updates"}  # of averages, beside the weights
WRAPPERS = {"module", "_orig_mod"}  # what DistributedDataParallel and torch.compile put into names
DEPTH = 5  # of mappings within mappings, and of a network's prefix


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state dict in a file.

    Attributes:
        key: where it is, such as "ema" or "state_dict.denoiser"; "" for the whole file.
        tensors: by name, without what is common to all names.
        fits: whether an origin has such names.
        attributes: of the module, if one was saved whole.
    """

    key: str
    tensors: State
    fits: bool
    attributes: Mapping[str, object]

    @property
    def averaged(self) -> bool:
        """Whether its key is that of an average of the weights."""
        words = re.split(r"[._\-]", self.key.lower())
        return any(word in AVERAGES or word.startswith("ema") for word in words) and "online" not in words


def find_states(content: object, fits: Callable[[State], bool], path: Path) -> list[Candidate]:
    """Return the state dicts of a file; of those that some origin could have written, only these.

    Args:
        content: of the file.
        fits: whether a state dict could be of some origin, by its names.
        path: of the file, for errors.
    """
    found = [
        candidate
        for key, tensors, attributes in _mappings(content, "", 0)
        for candidate in _parts(key, _unwrapped(tensors, path), fits, attributes, DEPTH)
    ]
    raw = [candidate for candidate in found if candidate.fits and not candidate.averaged]
    return [_named(one, raw[0]) if len(raw) == 1 and one.averaged and not one.fits else one for one in found]


def choose(found: list[Candidate], wanted: str | None, key: str | None, path: Path) -> Candidate:
    """Return the state dict that is meant: the one of a key, or else the average, or else the only one.

    Args:
        found: by `find_states`.
        wanted: "ema", "model", or None for the average if there is one.
        key: of the one to take, or None.
        path: of the file, for errors.
    """
    fitting = [candidate for candidate in found if candidate.fits]
    if key is not None:
        named = [candidate for candidate in found if candidate.key == key]
        if not named:
            raise UserError(f"{path} has no weights {key!r}; it has {_keys(fitting or found)}")
        return named[0]
    left = fitting or found
    if wanted == "ema" and [candidate.key for candidate in left] == [""]:
        raise UserError(f"{path} holds one set of weights and does not say which: leave out --weights ema")
    averaged = [candidate for candidate in left if candidate.averaged]
    if wanted == "ema" or (wanted is None and averaged):
        left = averaged
    elif wanted == "model":
        left = [candidate for candidate in left if not candidate.averaged]
    if not left:
        raise UserError(f"{path} has no {wanted} weights; it has {_keys(fitting or found)}")
    lost = [c.key for c in found if c.averaged and not c.fits and len(c.tensors) > 3]
    if fitting and lost and wanted is None and not averaged:
        raise UserError(
            f"{path} has an average, {lost[0]}, whose names are not those of the weights, {_keys(left)}: "
            "take the latter with --weights model"
        )
    first = {id(next(iter(candidate.tensors.values()))): candidate for candidate in reversed(left)}
    if len(first) > 1:
        raise UserError(f"{path} holds several sets of weights: say which with --key, one of {_keys(left)}")
    return left[0]


def _named(average: Candidate, raw: Candidate) -> Candidate:
    """Return an average without names, or without their dots, under the names of the weights beside it.

    Weights that no average was kept of, such as fixed tables, are those of the latter. The average itself is returned
    where it is not clear which tensor is which.
    """
    own = {name: tensor for name, tensor in average.tensors.items() if name not in COUNTERS}
    numbered = all(name.isdigit() for name in own)
    names = _in_order(own, raw.tensors) if numbered else _without_dots(own, raw)
    if names is None or 2 * len(own) < len(raw.tensors) or any(own[o].shape != raw.tensors[n].shape for n, o in names):
        return average
    return Candidate(average.key, {**raw.tensors, **{name: own[o] for name, o in names}}, True, raw.attributes)


def _in_order(numbered: State, raw: State) -> list[tuple[str, str]] | None:
    """Return (name, number) for tensors in the order of the parameters (torch_ema, diffusers), if shapes allow one."""

    def matched(numbers: list[str], items: list[tuple[str, Tensor]]) -> list[str]:
        rest = iter(items)
        firsts = (next((n for n, t in rest if t.shape == numbered[i].shape), "") for i in numbers)
        return list(firsts)

    numbers, items = sorted(numbered, key=int), list(raw.items())
    names = matched(numbers, items)
    unclear = "" in names or names != matched(numbers[::-1], items[::-1])[::-1]
    return None if unclear else list(zip(names, numbers, strict=True))


def _without_dots(own: State, raw: Candidate) -> list[tuple[str, str]] | None:
    """Return (name, name without dots) of an average as latent-diffusion's LitEma keeps it; None for other names."""
    parts = raw.key.split(".")
    for first in range(len(parts) + 1):
        joined = {".".join((*parts[first:], name)).replace(".", ""): name for name in raw.tensors}
        if own.keys() <= joined.keys() and len(joined) == len(raw.tensors):
            return [(joined[name], name) for name in own]
    return None


def _keys(candidates: list[Candidate]) -> str:
    shown = [candidate.key or "one set without a key" for candidate in candidates]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "")


def _mappings(value: object, key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor], Mapping[str, object]]]:
    """Yield each mapping of tensors by name, or module, with its key and the module's attributes."""
    if (state := module_state(value)) is not None:
        yield key, state, module_attributes(value)
        return
    if isinstance(value, Record):  # an object of their own class, such as an EasyDict or an average
        value = value.items or value.state
    if not isinstance(value, Mapping):
        return
    if isinstance(shadow := value.get("shadow_params"), list):  # an average without names
        value = {**value, "shadow_params": {f"{i}": item for i, item in enumerate(shadow)}}
    tensors = {name: tensor for name, item in value.items() if (tensor := as_tensor(item)) is not None}
    if named := {name: tensor for name, tensor in tensors.items() if isinstance(name, str)}:
        yield key, named, {}
    for name, item in value.items() if depth < DEPTH else ():
        if isinstance(name, (str, float)):  # a decay; whole numbers are an optimiser's
            yield from _mappings(item, f"{key}.{name}" if key else str(name), depth + 1)


def _parts(
    key: str, state: State, fits: Callable[[State], bool], attributes: Mapping[str, object], depth: int
) -> list[Candidate]:
    """Return a state dict, or the parts of it that fit, whose names begin alike, and which do not."""
    whole = Candidate(key, state, fits(state), attributes)
    if whole.fits or not depth:
        return [whole]
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = tensor
    parts = [
        part
        for first, group in groups.items()
        for part in _parts(f"{key}.{first}" if key else first, group, fits, {}, depth - 1)
    ]
    fitting = any(part.fits for part in parts)
    beside = [Candidate(f"{key}.{first}" if key else first, group, False, {}) for first, group in groups.items()]
    taken = [part.key for part in parts if part.fits]
    lone = [group for group in beside if not any(f"{name}.".startswith(f"{group.key}.") for name in taken)]
    return [*(part for part in parts if part.fits), *lone] if fitting else [whole]


def _unwrapped(state: State, path: Path) -> State:
    """Return a state dict without what DistributedDataParallel and torch.compile put into names."""
    clean: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in clean:
            raise UserError(f"{path}: {key} is there twice once module. and _orig_mod. are taken off")
        clean[name] = value
    return clean
