"""The house, read from its own source: who imports whom, what is never called, how long things are.

Folders are read by their real names; the links inside gen/ are not followed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gen.cli.list import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
# The link in gen/, which is the import name, and the folder that it leads to. `gen.distill` is a function, so the
# package of distillers has a name of its own.
LINKED = {"distillers": "distill", "eval": "eval", "kernels": "kernels", "models": "models", "samplers": "samplers"}
IMPORT_NAME = {folder: link for link, folder in LINKED.items()}
HOUSE = ("gen", *LINKED.values())

# Who may import whom; themselves always. `gen` names the others only at run time.
ARROWS = {
    "gen": set(),
    "kernels": set(),
    "models": {"gen", "kernels"},
    "samplers": {"gen"},
    "eval": {"gen"},
    "distillers": {"gen", "samplers"},
}
# Packages that may be imported at the top of a file; the others cost time, or may be missing, where nobody needs them.
LIGHT = {"torch", "numpy", "safetensors", "triton", "torchmetrics"}


def sources(*folders):
    """Python files of the folders, not through the links."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT).parts
            if "__pycache__" not in inner and not (inner[0] == "gen" and inner[1] in LINKED):
                found.append(path)
    return found


def name(path):
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def walk(node, skip_type_checking=True):
    """All nodes, but not those under `if TYPE_CHECKING:`, which no interpreter runs."""
    for child in ast.iter_child_nodes(node):
        if skip_type_checking and isinstance(child, ast.If) and "TYPE_CHECKING" in vars(child.test).values():
            continue
        yield child
        yield from walk(child, skip_type_checking)


def modules(node):
    """The dotted names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names] if node.level == 0 else ["relative"]
    return []


def room(dotted):
    """Which room of the house a module is in; None for other packages."""
    parts = dotted.split(".")
    if parts[0] != "gen":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LINKED else "gen"


def over(*folders):
    """Make one test a folder of a check(path), over all its files: a case a file costs more than what it checks."""

    def decorate(check):
        @functools.wraps(check)
        def test(folder):
            for path in sources(folder):
                check(path)

        del test.__wrapped__  # its argument would be taken for a fixture
        return pytest.mark.parametrize("folder", folders)(test)

    return decorate


@over(*HOUSE)
def test_imports_follow_the_arrows(path):
    here = IMPORT_NAME.get(path.relative_to(ROOT).parts[0], "gen")
    cli = here == "gen" and path.relative_to(ROOT).parts[1] == "cli"  # verbs are scripts: they may use all
    for node in walk(tree(path)):
        for dotted in modules(node):
            assert dotted != "relative", f"{name(path)}:{node.lineno} imports relatively; write gen.{here}. ..."
            there = room(dotted)
            allowed = set(ARROWS) if cli else ARROWS[here] | {here}
            assert there is None or there in allowed, f"{name(path)}:{node.lineno}: {here} may not import {dotted}"
            assert dotted.split(".")[0] not in IMPORT_NAME, f"{name(path)}:{node.lineno} imports {dotted} without gen."


@over(*HOUSE)
def test_heavy_packages_are_imported_where_they_are_used(path):
    for node in tree(path).body:
        for dotted in modules(node):
            package = dotted.split(".")[0]
            known = package in sys.stdlib_module_names or package == "gen" or package in LIGHT
            assert known, (
                f"{name(path)}:{node.lineno} imports {package} at its top; import it in the function that uses it"
            )


@pytest.mark.parametrize(("link", "folder"), LINKED.items())
def test_links_lead_to_the_folders(link, folder):
    link = ROOT / "gen" / link
    assert link.resolve() == ROOT / folder
    if link.is_symlink():  # a clone without links has the package-dir of pyproject.toml
        assert str(link.readlink()) == f"../{folder}"


@pytest.mark.parametrize(("link", "folder"), LINKED.items())
def test_a_bare_import_is_refused(link, folder):
    bare = "from kernels import attention" if folder == "kernels" else f"import {folder}"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {bare}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ImportError: import gen.{link}, not {folder}" in done.stderr


def test_pyproject_lists_the_packages_that_are_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    there = set()
    for path in sources(*HOUSE):
        if path.name == "__init__.py":
            dotted = ".".join(path.parent.relative_to(ROOT).parts)
            top, _, rest = dotted.partition(".")
            there.add(dotted if top == "gen" else f"gen.{IMPORT_NAME[top]}" + (rest and f".{rest}"))
    assert set(settings["packages"]) == there
    assert len(settings["packages"]) == len(there)
    assert settings["package-dir"] == {"gen": "gen", **{f"gen.{link}": folder for link, folder in LINKED.items()}}


@over(*HOUSE)
def test_every_folder_is_a_package(path):
    assert (path.parent / "__init__.py").exists()


# What could run someone else's code. Tests may: they make the hostile files.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"extractall", "unsafe_load", "full_load"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
YAML_AS_DATA = {  # what of yaml makes texts, numbers and containers only
    "parse", "SafeLoader", "YAMLError", "AliasEvent", "CollectionStartEvent", "CollectionEndEvent", "MappingNode",
    "SequenceNode", "ScalarNode",
}  # fmt: skip


@over(*HOUSE, "scripts")
def test_nothing_is_unpickled_or_evaluated(path):
    for node in walk(tree(path), skip_type_checking=False):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        for dotted in modules(node):
            assert dotted.split(".")[0] not in FORBIDDEN_MODULES, f"{where} imports {dotted}"
        assert getattr(node, "module", None) != "yaml", f"{where} imports from yaml: write yaml.parse and so on"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
            assert node.attr in YAML_AS_DATA, f"{where} uses yaml.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in FORBIDDEN_CALLS, f"{where} calls {called}"
        assert called.split(".")[-1] not in FORBIDDEN_METHODS, f"{where} calls {called}"
        if called == "torch.load":
            assert arguments.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
        if called in ("np.load", "numpy.load"):
            assert arguments.get("allow_pickle") == "False", f"{where}: {called} without allow_pickle=False"
        assert arguments.get("shell") != "True", f"{where} starts a shell"


def lines_without_docstrings(node, lines):
    """Lines of a file, or of a function, that are no docstring of it or of anything in it."""
    documented = 0
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            documented += first.end_lineno - first.lineno + 1
    return lines - documented


@over(*HOUSE, "scripts")
def test_files_and_functions_are_short(path):
    source = tree(path)
    lines = lines_without_docstrings(source, len(path.read_text(encoding="utf-8").splitlines()))
    assert lines <= 400, f"{name(path)} has {lines} lines"
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = lines_without_docstrings(node, node.end_lineno - node.lineno + 1)
            assert length <= 60, f"{name(path)}:{node.lineno}: {node.name} has {length} lines"


@over(*HOUSE, "scripts")
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"
    assert path.stem not in ("utils", "util", "helpers", "helper", "misc", "common"), f"{name(path)} says nothing"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_plug_in_file_names_and_explains_its_plug_in(folder):
    for path in sorted((ROOT / "gen" / folder.replace(".", "/")).glob("[!_]*.py")):
        module = importlib.import_module(f"gen.{folder}.{path.stem}")
        assert module.__all__, f"{module.__name__} exports nothing"
        plugin = getattr(module, module.__all__[0])
        assert plugin.__module__ == module.__name__, f"{module.__name__}: the first of __all__ is from elsewhere"
        assert plugin.__doc__, f"{module.__name__}: {module.__all__[0]} has no docstring"


def test_importing_gen_loads_nothing_else():
    code = "import sys, gen; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "torch",
        "numpy",
        "accelerate",
        "PIL",
        "torchmetrics",
        "sklearn",
        "scipy",
        "diffusers",
        "safetensors",
        "tqdm",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("verb", sorted(path.stem for path in (ROOT / "gen/cli").glob("[!_]*.py")))
def test_every_verb_has_its_script_and_keeps_the_contract(verb):
    hides = verb in (*sys.stdlib_module_names, "lm_eval")  # a script of that name would hide it from other scripts
    assert hides or (ROOT / "scripts" / f"{verb}.py").exists()
    module = importlib.import_module(f"gen.cli.{verb}")
    assert callable(module.add_arguments)
    assert callable(module.run)


def tracked_text():
    """The text of every file that git holds, or of every file but caches where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for given in filter(None, listed.split("\0")):
        path = ROOT / given
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            yield given, data.decode("utf-8")


# Joined here so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(["/" + "home/", "/" + "root/", "/" + "Users/", "/" + "work/", "/" + "tmp/", r"C:\\" + "Users"])
)


def test_no_file_knows_the_machine_it_was_written_on():
    found = [f"{path}: {m.group()}" for path, text in tracked_text() if (m := MACHINE_PATHS.search(text))]
    assert not found
