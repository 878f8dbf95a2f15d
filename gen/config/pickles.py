"""Pickles of other people, read as data: tensors, containers and numbers; everything else is an inert Record.

A pickle is a program that calls what it names. Here a name is only a name: the few functions that rebuild tensors,
arrays and containers have counterparts below, and a call of anything else makes a Record that keeps the name and the
arguments. No module is imported, no attribute looked up, no `__setstate__` or `__reduce__` of theirs is ever run.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import torch
from torch import Tensor

from gen.config.spec import Json

__all__ = [
    "Global",
    "PickleReader",
    "Record",
    "Storage",
    "as_tensor",
    "module_attributes",
    "module_state",
    "object_state",
    "plain",
]


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names.

    Attributes:
        name: such as "os.system".
    """

    name: str


@dataclass(eq=False)
class Record:
    """An object of the file that is no tensor, container or number; nothing of it runs.

    Attributes:
        name: of its class, or of the function that was to return it.
        args: what that was to be called with.
        state: the object's attributes, or whatever else the file calls its state.
        items: what was put into it by key.
        elements: what was added to it.
    """

    name: str
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers of one or more tensors.

    Attributes:
        data: uint8 [bytes].
        dtype: of the numbers.
    """

    data: Tensor
    dtype: torch.dtype


class PickleReader:
    """An interpreter of one pickle's opcodes that calls nothing which the pickle names.

    Args:
        file: that the pickle begins at; it is left where the pickle ends.
        storage: returns the Storage of a persistent id of torch.save; None in a pickle without any.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[tuple[Any, ...]], Storage] | None = None):
        self.file, self.storage = file, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def read(self) -> Any:
        """Return what the pickle holds."""
        for code, argument, _ in pickletools.genops(self.file):
            if code.name in OPCODES:
                OPCODES[code.name](self, argument)
            elif code.stack_before or len(code.stack_after) != 1 or code.name in CLOSED:
                raise ValueError(f"opcode {code.name}")
            else:  # a number or a text
                self.stack.append(argument)
        return self.stack.pop()

    def pop(self, count: int) -> list[Any]:
        """Take the last values off the stack."""
        first = len(self.stack) - count
        if first < 0:
            raise ValueError("an empty stack")
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    def pop_mark(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        return self.pop(len(self.stack) - self.marks.pop())

    def call(self, what: object, args: object, kwargs: object = None) -> None:
        """Push what a call stands for: one of the few that are known, or a Record of it."""
        self.stack.append(_call(what, args, kwargs or {}))

    def build(self, argument: object) -> None:
        """Keep a state; a container's attributes, such as a state dict's _metadata, are left out."""
        thing, state = self.pop(2)
        if isinstance(thing, Record):
            thing.state = state
        self.stack.append(thing)

    def persistent(self, pid: Any) -> None:
        """Push what a persistent id stands for."""
        kind = pid[0] if self.storage is not None and isinstance(pid, tuple) and len(pid) > 1 else None
        if self.storage is not None and kind in ("storage", b"storage"):
            self.stack.append(self.storage(pid[1:]))
        elif kind == "module":  # a class with its source, as torch's first format kept it
            self.stack.append(pid[1])
        else:
            self.stack.append(Record("persistent id", (pid,)))

    def add(self, values: list[Any]) -> None:
        """Add values to the list, set or Record that is last."""
        thing = self.stack[-1]
        if isinstance(thing, set):
            thing.update(values)
        elif isinstance(thing, (list, Record)):
            (thing if isinstance(thing, list) else thing.elements).extend(values)
        else:
            raise ValueError(f"values added to {type(thing).__name__}")

    def put(self, values: list[Any]) -> None:
        """Put keys and values into the mapping or Record that is last."""
        thing = self.stack[-1]
        if not isinstance(thing, (dict, Record)):
            raise ValueError(f"keys put into {type(thing).__name__}")
        (thing if isinstance(thing, dict) else thing.items).update(_pairs(values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _global(module: str, name: str) -> Global:
    return Global(f"{'builtins' if module == '__builtin__' else module}.{name}")


def _named(text: str) -> Global:
    return _global(*text.split(" ", 1))


CLOSED = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER")  # what lies outside the file
Act = Callable[[PickleReader, Any], object]
OPCODES: Mapping[str, Act] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), lambda r, a: None),
    "MARK": lambda r, a: r.marks.append(len(r.stack)),
    "POP": lambda r, a: r.pop(1),
    "NONE": lambda r, a: r.stack.append(None),
    "NEWTRUE": lambda r, a: r.stack.append(True),
    "NEWFALSE": lambda r, a: r.stack.append(False),
    "POP_MARK": lambda r, a: r.pop_mark(),
    "DUP": lambda r, a: r.stack.append(r.stack[-1]),
    "EMPTY_LIST": lambda r, a: r.stack.append([]),
    "EMPTY_DICT": lambda r, a: r.stack.append({}),
    "EMPTY_SET": lambda r, a: r.stack.append(set()),
    "EMPTY_TUPLE": lambda r, a: r.stack.append(()),
    "LIST": lambda r, a: r.stack.append(r.pop_mark()),
    "TUPLE": lambda r, a: r.stack.append(tuple(r.pop_mark())),
    "FROZENSET": lambda r, a: r.stack.append(frozenset(r.pop_mark())),
    "DICT": lambda r, a: r.stack.append(_pairs(r.pop_mark())),
    "TUPLE1": lambda r, a: r.stack.append(tuple(r.pop(1))),
    "TUPLE2": lambda r, a: r.stack.append(tuple(r.pop(2))),
    "TUPLE3": lambda r, a: r.stack.append(tuple(r.pop(3))),
    "APPEND": lambda r, a: r.add(r.pop(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda r, a: r.add(r.pop_mark())),
    "SETITEM": lambda r, a: r.put(r.pop(2)),
    "SETITEMS": lambda r, a: r.put(r.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda r, a: r.memo.update({a: r.stack[-1]})),
    "MEMOIZE": lambda r, a: r.memo.update({len(r.memo): r.stack[-1]}),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda r, a: r.stack.append(r.memo[a])),
    "GLOBAL": lambda r, a: r.stack.append(_named(a)),
    "STACK_GLOBAL": lambda r, a: r.stack.append(_global(*r.pop(2))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda r, a: r.call(*r.pop(2))),
    "NEWOBJ_EX": lambda r, a: r.call(*r.pop(3)),
    "INST": lambda r, a: r.call(_named(a), tuple(r.pop_mark())),
    "OBJ": lambda r, a: (lambda what, *args: r.call(what, args))(*r.pop_mark()),
    "BUILD": PickleReader.build,
    "PERSID": lambda r, a: r.persistent(a),
    "BINPERSID": lambda r, a: r.persistent(r.pop(1)[0]),
}


def _call(what: object, args: Any, kwargs: Any) -> object:
    """Return what a call in the file stands for: one of the few that are known, or a Record of it."""
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise ValueError(f"a call with {type(args).__name__}")
    name = what.name if isinstance(what, (Global, Record)) else type(what).__name__
    known = CALLS.get(what.name) if isinstance(what, Global) else None
    return Record(name, (*args, kwargs) if kwargs else args) if known is None or kwargs else known(*args)


# -- the calls that are known ------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: object) -> Tensor | Record:
    """As torch._utils._rebuild_tensor_v2 and _v3, whose dtype comes after two arguments more."""
    dtype = _dtype(rest[2]) if len(rest) > 2 else None
    tensor = torch.empty(0, dtype=dtype or storage.dtype)
    first, stray = divmod(storage.data.storage_offset(), tensor.element_size())
    if stray:
        raise ValueError("a view between numbers")
    tensor.set_(storage.data.untyped_storage(), first + offset, tuple(size), tuple(stride))
    if tensor.numel() * tensor.element_size() > max(len(storage.data), tensor.element_size()):
        return Record("an expanded tensor", (tuple(size), tuple(stride)))  # a few bytes would become any number
    return tensor


def _dtype(given: object) -> torch.dtype | None:
    return DTYPES.get(given.name) if isinstance(given, Global) else None


def _array(given: object, raw: object, shape: Any, fortran: object = False) -> object:
    """Return a numpy array as a tensor; a Record for one of objects or text."""
    dtype = _numpy_dtype(given)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if dtype is None or not isinstance(raw, (bytes, bytearray)):
        return Record("numpy.ndarray", (given, shape))
    import numpy as np

    values = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(values.reshape(shape, order="F" if fortran else "C"))


def _buffer(raw: object, given: object, shape: object, order: object = "C") -> object:
    """As numpy's _frombuffer, which is how protocol 5 writes arrays."""
    return _array(given, raw, shape, order == "F")


def _scalar(given: object, raw: object = b"") -> object:
    out = _array(given, raw, ())
    return out.item() if isinstance(out, Tensor) else out


def _numpy_dtype(given: object) -> Any:
    """Return the dtype of numbers that a record names; None for any other."""
    import numpy as np

    if not isinstance(given, Record) or given.name != "numpy.dtype" or not given.args:
        return None
    code: object = given.args[0]
    state = given.state if isinstance(given.state, tuple) else ()
    if not isinstance(code, str) or code[:1] not in tuple("biufc") or not code[1:].isdigit():
        return None
    return np.dtype(code).newbyteorder(">" if ">" in state[1:2] else "<")


def _from_bytes(raw: bytes) -> object:
    from gen.config.torch_file import read_legacy

    return read_legacy(raw)


def _bytes(given: object = b"", *encoding: object) -> bytes:
    """Return bytes that protocols 0 to 2 wrote as text, as _codecs.encode(text, "latin1") does."""
    return given.encode("latin1") if isinstance(given, str) else given if isinstance(given, bytes) else b""


def _mapping(items: object = ()) -> dict[object, object]:
    return dict(items) if isinstance(items, (list, dict)) else {}


# -- what records hold ------------------------------------------------------------------------------------------------


def as_tensor(value: object) -> Tensor | None:
    """Return a tensor, or a numpy array of numbers as one; None for anything else.

    Args:
        value: of a file that was read.
    """
    if isinstance(value, Record) and value.name.endswith(ARRAY) and isinstance(value.state, tuple):
        try:
            _, shape, dtype, fortran, raw = value.state
            value = _array(dtype, raw, shape, fortran)
        except (ValueError, TypeError):
            return None
    return value if isinstance(value, Tensor) else None


def _attributes(value: object) -> Mapping[object, object] | None:
    """Return the attributes of a torch module, also of a class that EDM saves with its source; None for others."""
    state = object_state(value)
    return state if state is not None and {"_parameters", "_modules"} <= state.keys() else None


def object_state(value: object) -> Mapping[object, object] | None:
    """Return the attributes of an object, also of a class that EDM saves with its source; None for what has none.

    Args:
        value: of a file that was read.
    """
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.name.endswith("._reconstruct_persistent_obj") and value.args:
        (meta, *_) = value.args
        meta = meta.items if isinstance(meta, Record) else meta
        state = meta.get("state") if isinstance(meta, Mapping) else None
    return state if isinstance(state, Mapping) else None


def module_state(value: object, prefix: str = "") -> dict[str, Tensor] | None:
    """Return the state dict of a torch or TorchScript module that was saved whole; None for anything else.

    Args:
        value: of a file that was read.
        prefix: of the names.
    """
    if isinstance(value, Record) and value.name.startswith("__torch__.") and isinstance(value.state, Mapping):
        return _script_state(value.state, prefix)
    attributes = _attributes(value)
    if attributes is None:
        return None
    left_out = attributes.get("_non_persistent_buffers_set") or ()
    state: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        named = attributes.get(kind)
        for name, item in named.items() if isinstance(named, Mapping) else ():
            tensor = as_tensor(item)
            if tensor is not None and not (kind == "_buffers" and isinstance(left_out, set) and name in left_out):
                state[f"{prefix}{name}"] = tensor
    for name, inner in _modules(attributes):
        state |= module_state(inner, f"{prefix}{name}.") or {}
    return state


def _script_state(attributes: Mapping[object, object], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript module, whose parts are attributes like others."""
    state: dict[str, Tensor] = {}
    for name, item in attributes.items():
        tensor = as_tensor(item)
        state |= {f"{prefix}{name}": tensor} if tensor is not None else module_state(item, f"{prefix}{name}.") or {}
    return state


def module_attributes(value: object, prefix: str = "") -> Json:
    """Return the numbers and texts that a torch module and its parts keep as attributes, by dotted name.

    Args:
        value: of a file that was read; {} for anything but a module.
        prefix: of the names.
    """
    attributes = _attributes(value) or {}
    kept = {f"{prefix}{key}": plain(item) for key, item in attributes.items() if not str(key).startswith("_")}
    for name, inner in _modules(attributes):
        kept |= module_attributes(inner, f"{prefix}{name}.")
    return {key: item for key, item in kept.items() if item is not None}


def _modules(attributes: Mapping[object, object]) -> list[tuple[object, object]]:
    modules = attributes.get("_modules")
    return list(modules.items()) if isinstance(modules, Mapping) else []


def plain(value: object) -> Any:
    """Return numbers, texts, lists and mappings of them as JSON values; None for what is none.

    A Namespace is its attributes, an omegaconf node its content, a path its text.

    Args:
        value: of a file that was read.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, Record):
        return None
    if value.name.startswith("pathlib."):
        return str(PurePosixPath(*map(str, value.args)))
    state = value.state if isinstance(value.state, Mapping) else {}
    for key in ("_content", "_val"):  # omegaconf's containers and leaves
        if key in state:
            return plain(state[key])
    inner = {**state, **value.items}
    return plain(inner) if inner and _attributes(value) is None else None


ARRAY = "multiarray._reconstruct"
CALLS: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: _call(rebuild, args, {}),
    "torch.storage._load_from_bytes": _from_bytes,
    "torch.Size": lambda size=(): tuple(size),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *args: {},
    "collections.Counter": _mapping,
    "builtins.set": lambda items=(): set(_mapping(dict.fromkeys(items))),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _buffer for core in ("core", "_core")},
}
DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
