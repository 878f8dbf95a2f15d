"""Specs: every configurable thing is a frozen dataclass, and a dataclass is a dict {"name": ..., **fields}.

The registry is the tree of files. In a plug-in folder such as samplers/solvers the spec {"name": "heun"} means the
first name in `__all__` of gen.samplers.solvers.heun; files that start with _ and sub-folders are no plug-ins. In a
plain module such as gen/diffusion/times.py {"name": "logit_normal"} means the class LogitNormal; one of functions
alone, such as gen/training/published.py, has those by their own names. Things from elsewhere
are named "my_package.module:Class". {"name": "dit", "preset": "XL/2"} starts from a class's preset. Where a folder has
a function `spec_at`, as gen.data has, a name may also be a path, which that turns into a spec.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import operator
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gen.config.errors import UserError, nearest, shown
from gen.config.sources import choice_name, choices_of, other_names, package_paths, plugin_names
from gen.config.trust import check_trusted
from gen.config.values import SCALARS, fits, has_member, hints_of, in_words, literals, members, parse_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Json", "Spec", "anchored", "build", "by_head", "convert", "describe", "digest", "field_value", "find",
    "first_paragraph", "folder_of", "is_sealed", "name_of", "names", "override", "owner_of", "part", "preset_names",
    "sealed", "spec_of", "with_keys",
]  # fmt: skip

Json = dict[str, Any]  # a JSON object: text, numbers, booleans, None, lists and further objects by key
Spec = str | Mapping[str, Any]  # a plug-in's name, or {"name": ..., **fields}
PATHS = ("path", "test_path", "file", "folder", "teacher", "init")  # fields that name a file or folder, everywhere
D = TypeVar("D", bound="DataclassInstance")


def part(*folders: str, kinds: tuple[type, ...] = (), **kwargs: Any) -> Any:
    """Declare a dataclass field that holds another spec'd thing.

    Args:
        *folders: the plug-in folders and modules whose names the field accepts.
        kinds: classes and Protocols of which an object must be one, where the annotation is Any.
        **kwargs: the options of dataclasses.field, such as `default`.
    """
    return dataclasses.field(metadata={"folders": folders, "kinds": kinds}, **kwargs)


def names(*folders: str) -> list[str]:
    """Return the valid names in plug-in folders or modules, sorted.

    Args:
        *folders: relative to gen and dotted, such as "samplers.solvers" or "diffusion.path".
    """
    found: set[str] = set()
    for folder in folders:
        paths, module = package_paths(folder), sys.modules.get(f"gen.{folder}")
        if paths is not None:
            found |= plugin_names(paths)
        else:
            found |= set(choices_of(folder) if module is None else _classes(module))
    return sorted(found)


def find(name: str, *folders: str) -> Any:
    """Return the class, or for recipes the function, that a name stands for.

    Args:
        name: a name of one of the folders, or "module:Class" for one from elsewhere.
        *folders: where to look, in order.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    if ":" in name:
        return _external(name)
    folder, name = folder_of(name, *folders), name.replace("-", "_")
    module = _folder(folder)
    if not hasattr(module, "__path__"):
        return _classes(module)[name]
    plugin = importlib.import_module(f"gen.{folder}.{name}")
    return getattr(plugin, plugin.__all__[0])


def folder_of(name: str, *folders: str) -> str:
    """Return the first of some folders that has a name; nothing is imported.

    Args:
        name: hyphens are as good as underscores.
        *folders: where to look, in order.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    plain = name.replace("-", "_")
    for folder in folders:
        if plain in names(folder):
            return folder
    known = {theirs: ours for folder in folders for theirs, ours in other_names(folder).items()}
    hint = f"It is {known[name]!r} here. " if name in known else ""
    raise UserError(f"unknown name {name!r} in {' or '.join(folders)}. {hint}{nearest(plain, names(*folders))}")


def build(folder: str | Sequence[str], spec: object, **fields: object) -> Any:
    """Build the object that a spec stands for; return an object that is no spec as it is.

    Args:
        folder: the folder or module that has the name, or several to look in.
        spec: a name, a mapping {"name": ..., **fields}, or a built object; dotted keys are those of its parts.
        **fields: values that replace the spec's.

    Raises:
        UserError: for unknown names and keys (with the nearest valid one) and for wrong types, in one line.
    """
    folders = tuple(folder) if isinstance(folder, (list, tuple)) else (folder,)
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if fields:
            raise UserError(f"{', '.join(fields)}: given beside a ready {type(spec).__name__}; give its name instead")
        return spec
    owner, stated = owner_of({**spec, **fields}, *folders)
    dotted = {key: value for key, value in stated.items() if "." in str(key)}
    given, later = with_keys({key: value for key, value in stated.items() if key not in dotted}, dotted)
    if "preset" in given and hasattr(owner, "preset"):  # {"name": "dit", "preset": "XL/2", "channels": 16}
        base = owner.preset(given.pop("preset"))
        given = {f.name: getattr(base, f.name) for f in dataclasses.fields(base) if f.init} | given
    built = _construct(owner, given if dataclasses.is_dataclass(owner) else stated)
    return override(built, later) if later else built


def owner_of(spec: Spec, *folders: str) -> tuple[Any, Json]:
    """Return the class that a spec names, and the fields that it states, with "preset" if it names one.

    Args:
        spec: a name, such as that of a preset, or a mapping with a name.
        *folders: where to look.
    """
    given: Json = {"name": spec} if isinstance(spec, str) else dict(spec)
    if not isinstance(name := given.pop("name", None), str):
        raise UserError(f"a spec of {' or '.join(folders)} needs a name. Allowed: {', '.join(names(*folders))}.")
    for owner_name, preset in _presets(name, folders):  # "dit-b/2": one of several sizes, by its own name
        name, given = owner_name, {"preset": preset, **given}
    for read in [spec_at for folder in folders if (spec_at := getattr(_folder(folder), "spec_at", None))]:
        if ":" not in name and name.replace("-", "_") not in names(*folders) and (there := read(name)):
            name, given = there.pop("name"), {**there, **given}
    return find(name, *folders), given


def spec_of(thing: Any, named: bool = True) -> Json:
    """Return the dict that builds an equal thing: JSON values only, nested parts as nested specs.

    A field whose metadata has "saved": False is left out: it holds an object that no spec can stand for, None when the
    spec is built.

    Args:
        thing: a dataclass instance.
        named: False for a dataclass of which there is one kind only, such as a Run, and so no name.
    """
    spec: Json = {"name": name_of(type(thing))} if named else {}
    for f in dataclasses.fields(thing):
        if f.init and f.metadata.get("saved", True):
            spec[f.name] = _to_json(getattr(thing, f.name), "folders" in f.metadata)
    return spec


def name_of(owner: type) -> str:
    """Return the registered name of a class; "module:Class" for one from elsewhere.

    Args:
        owner: the class.
    """
    if not owner.__module__.startswith("gen."):
        return f"{owner.__module__}:{owner.__qualname__}"
    choices = _classes(importlib.import_module(owner.__module__))
    return next((name for name, choice in choices.items() if choice is owner), owner.__module__.rpartition(".")[2])


def preset_names(owner: Any) -> list[str]:
    """Return the presets of a class that are names of its own: none for one that wraps another, whose presets they are.

    Args:
        owner: the class.
    """
    wraps = dataclasses.is_dataclass(owner) and "inner" in _fields(owner)
    return [] if wraps else list(getattr(owner, "presets", ()))


def override(thing: D, changes: Mapping[str, object]) -> D:
    """Return a copy with dotted keys replaced: {"optim.lr": "2e-4", "model.width": 128}.

    A part named anew ("path": "edm"), or by a preset ("model.preset": "B/2"), starts from that plug-in's defaults and
    takes its own dotted keys, in whichever order they come; all changes of one thing apply at once, so that fields
    which must agree may change together.

    Args:
        thing: a dataclass instance; it stays as it is.
        changes: new values by dotted key; text is read as JSON if possible.

    Raises:
        UserError: for unknown keys and wrong values.
    """
    if not changes:
        return thing
    fields = {f.name: f for f in dataclasses.fields(thing) if f.init}
    for head in (str(key).partition(".")[0] for key in changes):
        if head not in fields:
            raise UserError(f"unknown key {head!r} of {type(thing).__name__}. {nearest(head, fields)}")
    if follow := getattr(type(thing), "follow", None):  # what depends on the changes
        changes = follow(thing, changes)
    values = {name: getattr(thing, name) for name in fields}
    own, inner = by_head(changes)
    for head in {**own, **inner}:
        rest = inner.get(head, {})
        if head not in own and "preset" in rest and hasattr(values[head], "preset"):
            own[head] = name_of(type(values[head]))
        if head in own:
            spec, rest = with_keys(own[head], rest) if "folders" in fields[head].metadata else (own[head], rest)
            values[head] = _unchecked(type(thing), fields[head], spec)
        if rest and values[head] is None and (kind := _optional_kind(type(thing), head)) is not None:
            values[head] = kind()
        if rest and not dataclasses.is_dataclass(values[head]):
            key = next(iter(rest))
            raise UserError(f"{head}.{key}: {head} is {values[head]!r} and has no key {key!r}")
        values[head] = override(values[head], rest) if rest else values[head]
    return _construct(type(thing), values)


def _optional_kind(owner: type, field: str) -> Any:
    """Return the dataclass of a field that may be None and is no part with a name; None for other fields."""
    kinds = [kind for kind in typing.get_args(hints_of(owner)[field]) if dataclasses.is_dataclass(kind)]
    named = any(f.name == field and "folders" in f.metadata for f in dataclasses.fields(owner))
    return kinds[0] if len(kinds) == 1 and not named else None


def anchored(spec: Any) -> Any:
    """Return a spec that means the same from any working directory: the path of what is there is absolute.

    Args:
        spec: JSON value; text under a key of PATHS is a path.
    """
    if isinstance(spec, (list, tuple)):
        return [anchored(part) for part in spec]
    if not isinstance(spec, Mapping):
        return spec
    return {key: _absolute(value) if key in PATHS else anchored(value) for key, value in spec.items()}


def digest(value: object) -> str:
    """Return the sha256 of a JSON value.

    Args:
        value: strict JSON; the order of keys does not matter.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sealed(body: Mapping[str, object]) -> Json:
    """Return a JSON object with the sha256 of the rest of it under "sha256".

    Args:
        body: the rest; strict JSON.
    """
    return {**body, "sha256": digest(body)}


def is_sealed(value: Mapping[str, object]) -> bool:
    """Return whether a JSON object is as `sealed` left it.

    Args:
        value: the object.
    """
    return value.get("sha256") == digest({key: part for key, part in value.items() if key != "sha256"})


def describe(thing: object) -> str:
    """Return the first paragraph of a docstring on one line.

    Args:
        thing: a module, class or function.
    """
    return first_paragraph(inspect.getdoc(thing) or "")


def first_paragraph(text: str) -> str:
    """Return the first paragraph of a text on one line.

    Args:
        text: a docstring.
    """
    return " ".join(text.split("\n\n")[0].split())


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return a value from Python, JSON, TOML or a command line as the annotated type.

    bool is no int, an int is a float, NaN and infinity are no floats (JSON has none), ints have 64 bits, None is
    allowed where the annotation names it, a path is as good as its text, and text is read as JSON where none is wanted.

    Args:
        value: the value as given.
        hint: the annotation, evaluated; a class must be that of the value, a Protocol's methods must be there.
        where: the name of the field or argument, for the error.

    Raises:
        UserError: if the value is none of the type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    union = origin in (typing.Union, types.UnionType)
    stays = hint in (str, Any, Path) or (union and (str in args or Path in args))  # text that is wanted
    if isinstance(value, str) and not stays and value not in literals(hint):
        value = parse_text(value)
    if union:
        if Path in args and isinstance(value, (str, PurePath)) and not SCALARS[Path](value):
            return _refuse(value, Path, where)
        return _first_fit(value, args, where)
    if origin is typing.Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in args):
            raise UserError(f"{where}: got {shown(value)}. {nearest(shown(value), map(str, args))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise UserError(f"{where}: got {len(value)} values {shown(value)}, expected {len(inner)}")
        return tuple(convert(v, h, where) for v, h in zip(value, inner, strict=True))
    if origin is Sequence:
        if not isinstance(value, (list, tuple, range)):
            return _refuse(value, hint, where)
        return tuple(convert(v, args[0], where) for v in value)
    if (origin or hint) in (dict, Mapping):
        named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return dict(value) if named else _refuse(value, hint, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return _construct(hint, dict(value))
    if hint in SCALARS:
        read = SCALARS[hint](value)
        return read[0] if read else _refuse(value, hint, where)
    return value if fits(value, origin or hint) else _refuse(value, hint, where)


def _construct(owner: Any, given: Json) -> Any:
    if not dataclasses.is_dataclass(owner):
        return _called(owner, given)
    fields = {f.name: f for f in dataclasses.fields(owner) if f.init}
    label = getattr(owner, "__name__", str(owner))
    if follow := getattr(owner, "follow", None):
        given = follow(None, given)
    values: Json = {f.name: None for f in fields.values() if not f.metadata.get("saved", True)}
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"unknown key {shown(key)} of {label}. {nearest(str(key), fields)}")
        values[key] = _unchecked(owner, fields[key], value)
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{label} needs {', '.join(missing)}")
    make: Any = owner
    return make(**values)


def _called(owner: Any, given: Json) -> Any:
    """Return the object of a class that is no dataclass, which takes no keys."""
    if given or not inspect.isclass(owner):
        raise UserError(f"{owner!r} is no dataclass, and so takes no keys")
    try:
        return owner()
    except TypeError as error:
        raise UserError(
            f"{name_of(owner)} is not built without arguments ({error}): give an object in Python"
        ) from None


def _absolute(value: Any) -> Any:
    is_path = isinstance(value, str) and value and Path(value).exists()
    return str(Path(value).absolute()) if is_path else anchored(value)


def by_head(changes: Mapping[str, object]) -> tuple[Json, dict[str, Json]]:
    """Return the changes without a dot, and those with one by what stands before it.

    Args:
        changes: by dotted key.
    """
    own, inner = Json(), dict[str, Json]()
    for key, value in changes.items():
        head, dot, rest = str(key).partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    return own, inner


def with_keys(spec: Any, keys: Json) -> tuple[Any, Json]:
    """Return a spec that has taken its dotted keys, and the keys of parts that it does not name itself.

    Args:
        spec: a name, a mapping, or either as JSON text; anything else stays as it is.
        keys: by dotted key.
    """
    spec = parse_text(spec) if isinstance(spec, str) else spec
    if not keys or not isinstance(spec, (str, Mapping)):
        return spec, keys
    own, inner = by_head(keys)
    given: Json = ({"name": spec} if isinstance(spec, str) else dict(spec)) | own
    left: Json = {}
    for head, rest in inner.items():
        if head in given:
            given[head], rest = with_keys(given[head], rest)
        left |= {f"{head}.{key}": value for key, value in rest.items()}
    return given, left


def _presets(name: str, folders: Sequence[str]) -> list[tuple[str, str]]:
    """Return the plug-in and the preset that a name such as "dit-b/2" stands for: one pair, or none."""
    if ":" in name or name.replace("-", "_") in (known := names(*folders)):
        return []
    pairs = [(plugin, preset) for plugin in known for preset in preset_names(find(plugin, *folders))]
    found = [(plugin, preset) for plugin, preset in pairs if preset.lower() == name.lower()]
    return found if len(found) == 1 else []


def _fields(owner: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(owner)}


def field_value(owner: Any, field: dataclasses.Field[Any], value: object) -> Any:
    """Return the value of a dataclass field in its annotated type, or as the part that it names.

    Args:
        owner: the dataclass.
        field: of it; a part whose default is a tuple holds several.
        value: as given.

    Raises:
        UserError: for a value of another type, or a part that is none of the field's.
    """
    hint, where = hints_of(owner)[field.name], f"{getattr(owner, '__name__', owner)}.{field.name}"
    if "folders" not in field.metadata:
        return convert(value, hint, where)
    value = parse_text(value) if isinstance(value, str) else value
    if not isinstance(field.default, tuple):
        return _part(field, hint, value, where)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: got {shown(value)}, expected a list")
    return tuple(_part(field, typing.get_args(hint)[0], v, where) for v in value)


def _part(field: dataclasses.Field[Any], hint: Any, value: Any, where: str) -> Any:
    folders, hinted = field.metadata["folders"], typing.get_args(hint) or (hint,)
    kinds = field.metadata["kinds"] or hinted
    if value is None and (field.default is None or type(None) in (*hinted, *kinds)):
        return None
    no_spec = type(value).__module__ == "builtins" and not isinstance(value, (str, dict))
    plain = no_spec or isinstance(value, type)
    built = value if plain else build(folders, value)
    foreign = not type(built).__module__.startswith(("gen.", "builtins"))  # need not name a class of gen as its base
    classes = [kind for kind in kinds if kind is not type(None)]
    fitting = any(fits(built, kind) or (foreign and not members(kind)) for kind in classes)
    if plain or not fitting:
        lacks = [name for kind in kinds for name in members(kind) if not has_member(built, name)]
        allowed = " or ".join(f"`gen list {folder}`" for folder in folders)
        also = f" or an object with {', '.join(lacks)}" if lacks else ""
        raise UserError(f"{where}: got {shown(value)}, expected a name or a spec of {allowed}{also}")
    return built


def _unchecked(owner: Any, field: dataclasses.Field[Any], value: object) -> Any:
    """Return the value of a field, parts as built but whether they fit: __post_init__ may take short forms of them."""
    folders = field.metadata.get("folders")
    if not folders:
        return field_value(owner, field, value)
    value = parse_text(value) if isinstance(value, str) else value
    if isinstance(value, (list, tuple)):
        built = [build(folders, v) for v in value]
        return tuple(built) if isinstance(field.default, tuple) else built
    return value if value is None or isinstance(field.default, tuple) else build(folders, value)


def _folder(name: object) -> types.ModuleType:
    try:
        return importlib.import_module(f"gen.{name if isinstance(name, str) else ''}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("gen"):
            raise  # a package that a plug-in needs
        raise UserError(f"{shown(name)} is no folder of plug-ins; see: gen list") from None


def _classes(module: types.ModuleType) -> dict[str, Any]:
    """Return the choices of a plain module by name: the classes of its `__all__` that derive from another one there.

    A class that ends in its base's name goes by the rest: UniformWeighting(Weighting) is "uniform". Without any class,
    the choices are its functions.
    """
    public = {name: getattr(module, name) for name in module.__all__}
    classes = [c for c in public.values() if inspect.isclass(c)]
    if not classes:
        return public
    bases = {c: [base.__name__ for base in c.__mro__[1:] if base in classes] for c in classes}
    return {choice_name(c.__name__, bases[c]): c for c in classes if bases[c]}


def _external(name: str) -> Any:
    """Return a class by "module:Class"; a module that is not installed may lie in the current folder."""
    check_trusted(name)
    module, _, attribute = name.partition(":")
    if not all(map(str.isidentifier, [*module.split("."), attribute])):
        raise UserError(f"{name!r} is no name of a class, such as my_package.my_module:Class")
    top, here = module.partition(".")[0], str(Path.cwd())
    if here not in sys.path and PathFinder.find_spec(top) is None and PathFinder.find_spec(top, [here]) is not None:
        sys.path.append(here)  # behind all others, and only now: a file there hides no package, nor stands in for one
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs code of the user's, which may raise anything
        raise UserError(f"cannot find {name!r}: {error}") from error


def _to_json(value: object, named: bool) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return spec_of(value, named)
    if isinstance(value, (list, tuple)):
        return [_to_json(v, named) for v in value]
    return dict(value) if isinstance(value, Mapping) else value


def _first_fit(value: object, hints: Sequence[object], where: str) -> Any:
    if isinstance(value, Mapping):  # the dataclass that has most of the keys gives the best message about the others
        owners = [h for h in hints if dataclasses.is_dataclass(h)]
        if owners:
            return convert(value, max(owners, key=lambda h: len(value.keys() & _fields(h))), where)
    for hint in hints:
        try:
            return convert(value, hint, where)
        except UserError:
            continue
    return _refuse(value, functools.reduce(operator.or_, hints), where)


def _refuse(value: object, hint: object, where: str) -> NoReturn:
    raise UserError(f"{where}: got {shown(value)}, expected {in_words(hint, value)}")
