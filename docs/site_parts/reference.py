"""The pages of the reference: one for each package, with the public names of its modules."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS = {folder: package for package, folder in SETTINGS["package-dir"].items() if package != "gen"}
# Packages whose names nobody needs who uses gen.
INNER = re.compile(r"gen\.cli|gen\.kernels\.|gen\.models\.layers|gen\.eval\.(arena|pages)|.*\.lib$")
PACKAGES = [name for name in SETTINGS["packages"] if not INNER.match(name)]


def pages():
    """Return the text of every page by its file's name, in reStructuredText."""
    return {f"{name}.rst": page(name) for name in PACKAGES} | {"commands.rst": commands()}


def commands():
    """Return the page of the command line: the help of every verb."""
    from gen.cli import _main as cli

    lines = [*heading("Commands", "="), "What ``gen VERB --help`` prints.", ""]
    for name in cli.verbs():
        verb = importlib.import_module(f"gen.cli.{name.replace('-', '_')}")
        text = cli._parser(name, verb).format_help()
        lines += [*heading(name, "-"), ".. code-block:: text", "", textwrap.indent(text, "   "), ""]
    return "\n".join(lines)


def page(package):
    """Return the page of a package: its docstring, its packages, its modules."""
    inner = [name for name in PACKAGES if name.rpartition(".")[0] == package]
    lines = heading(package, "=") + entry(package)
    if inner:
        lines += [
            ".. toctree::",
            "   :maxdepth: 1",
            "",
            *(f"   {name.rpartition('.')[2]} <{name}>" for name in inner),
            "",
        ]
    for module in modules(package):
        lines += heading(module.removeprefix(f"{package}."), "-") + entry(module)
    return "\n".join(lines)


def heading(text, line):
    return [text, line * len(text), ""]


def entry(module):
    """Return the directive that documents what a module itself defines of its `__all__`."""
    names = public(source_of(module)) if module != "gen" else face()
    return [f".. automodule:: {module}", *([f"   :members: {', '.join(names)}"] if names else []), ""]


def face():
    import gen

    return [name for name in gen.__all__ if not name.startswith("__")]


def modules(package):
    """Return a package's public modules that export something."""
    files = sorted(source_of(package).parent.glob("[!_]*.py"))
    return [f"{package}.{file.stem}" for file in files if public(file)]


@functools.cache
def public(file):
    """Return the names of a file's `__all__` that the file defines, in the order of their definition."""
    exported, defined = set(), []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            if isinstance(target, ast.Name) and target.id == "__all__":
                exported = {inner.value for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)}
            elif isinstance(target, ast.Name):
                defined.append(target.id)
    return [name for name in defined if name in exported]


def source_of(module):
    """Return the file of a module, by its real folder."""
    parts = module.split(".")
    folder = {package: folder for folder, package in FOLDERS.items()}.get(".".join(parts[:2]))
    path = ROOT.joinpath(folder, *parts[2:]) if folder else ROOT.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_of(path):
    """Return the module at a path relative to the repository, or None where the reference has none."""
    parts = Path(path).with_suffix("").parts
    module = ".".join([*FOLDERS.get(parts[0], parts[0]).split("."), *parts[1:]]).removesuffix(".__init__")
    if module in PACKAGES:
        return module
    return module if package_of(module) in PACKAGES and module in modules(package_of(module)) else None


def package_of(module):
    return module if module in PACKAGES else module.rpartition(".")[0]
