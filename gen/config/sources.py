"""Plug-ins as their source files describe them: names, docstrings and presets, without importing what they need.

`gen list` and the line about a mistyped name need no more. Nothing is executed: tables of sizes are read as far as they
consist of literals, comprehensions and each other. What a source does not show, its reader asks of the module itself.
"""

from __future__ import annotations

import ast
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from gen.config.errors import UserError, shown

__all__ = ["Definition", "choice_name", "choices_of", "definitions", "other_names", "package_paths", "plugin_names"]


class Unreadable(Exception):
    """A source does not show a value: only running it would."""


def package_paths(folder: object) -> list[str] | None:
    """Return the paths of a plug-in folder, or None of a plain module.

    Args:
        folder: relative to gen and dotted, such as "samplers.solvers".

    Raises:
        UserError: if there is no such folder or module.
    """
    spec = _spec(f"gen.{folder}") if isinstance(folder, str) and folder else None
    if spec is None:
        raise UserError(f"{shown(folder)} is no folder of plug-ins; see: gen list")
    return None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)


def plugin_names(paths: Iterable[str]) -> set[str]:
    """Return the names of a folder's plug-ins: its files that do not start with _.

    Args:
        paths: of the folder.
    """
    return {m.name for m in pkgutil.iter_modules(paths) if not (m.ispkg or m.name.startswith("_"))}


def definitions(folder: str) -> dict[str, Definition | None]:
    """Return the class or function of every plug-in by name, sorted; None for one that its source does not show.

    Args:
        folder: a plug-in folder or a plain module, relative to gen and dotted.
    """
    if (paths := package_paths(folder)) is None:
        return dict(sorted(choices_of(folder).items()))
    return {name: _first_public(f"gen.{folder}.{name}") for name in sorted(plugin_names(paths))}


def choices_of(folder: str) -> dict[str, Definition]:
    """Return the choices of a plain module by name: the classes of its `__all__` that derive from another one there.

    Without any class, they are its functions.

    Args:
        folder: the module, relative to gen and dotted.
    """
    source = _source(f"gen.{folder}")
    public = [found for name in source.constant("__all__") if (found := source.find(name)) is not None]
    classes = [found for found in public if isinstance(found.node, ast.ClassDef)]
    if not classes:
        return {found.name: found for found in public}
    nodes = [found.node for found in classes]
    bases = [[base.name for base in found.ancestors() if base.node in nodes] for found in classes]
    return {choice_name(found.name, above): found for found, above in zip(classes, bases, strict=True) if above}


def choice_name(name: str, bases: Sequence[str]) -> str:
    """Return the name of a choice of a plain module: UniformWeighting, derived from Weighting, is "uniform".

    Args:
        name: of the class.
        bases: names of its bases in the module, the root last.
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.removesuffix(bases[-1])).lower()


def other_names(folder: str) -> dict[str, str]:
    """Return the names of other libraries for the plug-ins of a folder, and ours: its OTHER_NAMES; {} for none.

    Args:
        folder: a plug-in folder or a plain module, relative to gen and dotted.
    """
    source = _source(f"gen.{folder}")
    return dict(source.constant("OTHER_NAMES")) if "OTHER_NAMES" in source.nodes else {}


@dataclass(frozen=True, eq=False)
class Definition:
    """A class or function as the source of its module has it.

    Attributes:
        source: of the module.
        name: in the module.
    """

    source: Source
    name: str

    @property
    def node(self) -> ast.stmt:
        """The statement that defines it."""
        return self.source.nodes[self.name]

    @property
    def doc(self) -> str | None:
        """The docstring, None where it has none of its own."""
        return ast.get_docstring(self.node) if isinstance(self.node, (ast.ClassDef, ast.FunctionDef)) else None

    @cached_property
    def presets(self) -> Mapping[str, Any]:
        """The class attribute `presets`, of its own or inherited; {} where there is none."""
        for owner in (self, *self.ancestors()):
            if (value := owner.fields().get("presets")) is not None:
                return owner.source.value(value, {})
        return {}

    def result(self) -> Any:
        """Return the value of a function without arguments, of assignments and a return."""
        scope: dict[str, Any] = {}
        for node in self.node.body if isinstance(self.node, ast.FunctionDef) else []:
            if isinstance(node, ast.Return):
                return self.source.value(node.value, scope)
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                scope |= {name: self.source.value(node.value, scope) for name in _targets(node)}
        raise Unreadable(self.name)

    def fields(self) -> dict[str, ast.expr | None]:
        """Return the values of the class's own attributes, None for those that are only annotated."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        return {name: getattr(node, "value", None) for node in body for name in _targets(node)}

    def ancestors(self) -> Iterator[Definition]:
        """Yield the bases that gen defines, and theirs, nearest first."""
        for base in self.node.bases if isinstance(self.node, ast.ClassDef) else []:
            if (found := self.source.resolve(base)) is not None:
                yield found
                yield from found.ancestors()

    @property
    def preset_names(self) -> list[str] | None:
        """As gen.config.spec.preset_names, none for a class that wraps another; None where the source hides them."""
        if any("inner" in owner.fields() for owner in (self, *self.ancestors())):
            return []
        try:
            return list(self.presets)
        except Unreadable:
            return None


class Source:
    """The statements of a module by the names that they define.

    Attributes:
        module: its dotted name.
        nodes: the statement that defines each name last.
    """

    def __init__(self, module: str, file: str) -> None:
        self.module = module
        body = ast.parse(Path(file).read_bytes()).body
        self.nodes = {name: node for node in body for name in _targets(node)}

    def find(self, name: str) -> Definition | None:
        """Return the class or function of a name, defined here or imported from another module of gen."""
        if (there := self._imported(name)) is not None:
            return there[0].find(there[1])
        node = self.nodes.get(name)
        return Definition(self, name) if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else None

    def resolve(self, expression: ast.expr) -> Definition | None:
        """Return the class that `Name` or `module.Name` stands for, if gen defines it."""
        if isinstance(expression, ast.Name):
            return self.find(expression.id)
        if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
            node = self.nodes.get(expression.value.id)
            if isinstance(node, ast.ImportFrom) and _spec(module := f"{node.module}.{expression.value.id}"):
                return _source(module).find(expression.attr)
        return None

    def constant(self, name: str) -> Any:
        """Return the value that a name is assigned, here or in the module of gen that it is imported from."""
        if (there := self._imported(name)) is not None:
            return there[0].constant(there[1])
        return self.value(getattr(self.nodes.get(name), "value", None), {})

    def value(self, node: object, scope: Mapping[str, Any]) -> Any:
        """Return the value of an expression as tables of sizes are written; no code of the module runs.

        Args:
            node: the expression.
            scope: values of the names that a function or a comprehension has bound.

        Raises:
            Unreadable: for any other expression; one that is only the value of an entry in a table becomes `...`.
        """
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return scope[name] if name in scope else self.constant(name)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.value(item, scope) for item in items)
            case ast.JoinedStr(values=parts):
                return "".join(str(self.value(part, scope)) for part in parts)
            case ast.FormattedValue(value=part, conversion=-1, format_spec=None):
                return self.value(part, scope)
            case ast.Subscript(value=table, slice=key):
                return self.value(table, scope)[self.value(key, scope)]
            case ast.Compare(left=left, ops=[ast.NotEq()], comparators=[right]):
                return self.value(left, scope) != self.value(right, scope)
            case ast.Dict(keys=keys, values=values):
                merged: dict[Any, Any] = {}
                for label, entry in zip(keys, values, strict=True):
                    if label is None:  # **entry
                        merged |= self.value(entry, scope)
                    else:
                        merged[self.value(label, scope)] = self._entry(entry, scope)
                return merged
            case ast.DictComp(key=key, value=value, generators=generators):
                scopes = self._scopes(generators, scope)
                return {self.value(key, inner): self._entry(value, inner) for inner in scopes}
            case ast.Attribute(value=owner, attr="presets") if (found := self.resolve(owner)) is not None:
                return found.presets
            case ast.Call(func=ast.Attribute(value=table, attr="items"), args=[]):
                return tuple(self.value(table, scope).items())
            case ast.Call(func=ast.Name(id=name), args=[]) if (found := self.find(name)) is not None:
                return found.result()
        raise Unreadable(ast.dump(node) if isinstance(node, ast.AST) else node)

    def _entry(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        try:
            return self.value(node, scope)
        except Unreadable:
            return ...

    def _scopes(self, generators: Sequence[ast.comprehension], scope: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the scopes of a comprehension's rounds."""
        if not generators:
            yield scope
            return
        for item in self.value(generators[0].iter, scope):
            inner = {**scope, **_bound(generators[0].target, item)}
            if all(self.value(condition, inner) for condition in generators[0].ifs):
                yield from self._scopes(generators[1:], inner)

    def _imported(self, name: str) -> tuple[Source, str] | None:
        """Return the module of gen that a name is imported from, and its name there."""
        node = self.nodes.get(name)
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("gen."):
            return None
        spec = _spec(module := node.module or "")
        if spec is None or spec.origin is None:
            return None
        return _source(module), next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def _bound(target: ast.expr, item: Any) -> dict[str, Any]:
    """Return the names that an assignment target binds, with their values."""
    if isinstance(target, ast.Name):
        return {target.id: item}
    if not isinstance(target, ast.Tuple) or not isinstance(item, tuple) or len(target.elts) != len(item):
        raise Unreadable(ast.dump(target))
    return {
        name: value
        for inner, part in zip(target.elts, item, strict=True)
        for name, value in _bound(inner, part).items()
    }


def _first_public(module: str) -> Definition | None:
    """Return the first name in a module's `__all__`."""
    source = _source(module)
    return source.find(source.constant("__all__")[0]) if "__all__" in source.nodes else None


def _targets(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _source(module: str) -> Source:
    spec = _spec(module)
    file = Path(str(spec and spec.origin))
    return _parsed(module, str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _parsed(module: str, file: str, mtime: int) -> Source:
    return Source(module, file)


def _spec(module: str) -> ModuleSpec | None:
    """Return a module's spec as the import system finds it, without importing the packages that it lies in."""
    if (there := sys.modules.get(module)) is not None and there.__spec__ is not None:
        return there.__spec__
    parent = _spec(module.rpartition(".")[0]) if "." in module else None
    if "." in module and (parent is None or parent.submodule_search_locations is None):
        return None
    path = parent.submodule_search_locations if parent else None
    found = (finder.find_spec(module, path) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)
