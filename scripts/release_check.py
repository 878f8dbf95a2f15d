"""Check the wheel and the sdist: built from a fresh clone, compared with the tree, installed outside it and used.

python scripts/release_check.py --out runs/release                                 build, and compare the contents
python scripts/release_check.py --out runs/release --python python3.11 python3.12  install and use them, too
    --extras diffusers serve      only these, each alone; default all of them, and then all together
    --torch FOLDER ...            for each Python a site-packages folder that has torch, in place of installing it

Each Python gets a new environment with the wheel and what it needs, in which `gen --version`, `gen list`, `gen doctor`
and, in an empty folder, `gen quickstart` must end with 0. Each extra gets another one, which sees the packages of the
first, so that only what the extra adds is installed; its packages must be importable there, or refused in one line that
the check prints, as it does a failure of `gen doctor`; `gen list` must end with 0. Prints one line for each check;
exit 1 if anything is wrong. Ten minutes for each Python on two cores, most of it downloads and the quickstart.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = {name: needs for name, needs in PROJECT["project"]["optional-dependencies"].items() if name != "dev"}
CLUTTER = ("dist-info/", "egg-info/", "setup.cfg", "PKG-INFO")  # of the build, not of the tree
PLACES = {folder: link.replace(".", "/") for link, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}
BESIDE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")  # in the sdist
IMPORTED = {"scikit-image": "skimage"}  # what a package is imported as, where that is another name
LIMIT = 1800  # seconds for one command


def run(command: Sequence[object], folder: Path, **changes: str) -> str:
    """Return what a command prints; RuntimeError with its last lines if it fails."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=kept | changes, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {' | '.join(lines[-4:])}")
    return done.stdout


def build(out: Path, python: str) -> tuple[Path, Path, dict[str, bytes]]:
    """Build sdist and wheel of the last commit, in a fresh clone.

    Args:
        out: an empty folder for both.
        python: that has build and setuptools.

    Returns:
        The wheel, the sdist, and the files of the clone that an sdist should hold, by path.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, clone], Path(folder))
        tracked = run(["git", "ls-files", "-z", *PLACES, *BESIDE], clone).split("\0")
        files = [name for name in tracked if name and not (clone / name).is_symlink()]
        run([python, "-m", "build", "--no-isolation", "--outdir", out, clone], Path(folder))
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        return wheel, sdist, {name: (clone / name).read_bytes() for name in files}


def wheel_of(sdist: Path, out: Path, python: str) -> Path:
    """Build a wheel of an unpacked sdist, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        run(["tar", "-xzf", sdist], Path(folder))
        (tree,) = Path(folder).iterdir()
        run([python, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree], Path(folder))
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(archive: Path) -> dict[str, bytes]:
    """Return the files of a wheel, or of an sdist in its one folder, by path, without what the build adds."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as held:
            files = {name: held.read(name) for name in held.namelist()}
    else:
        with tarfile.open(archive) as held:
            members = {member.name.partition("/")[2]: held.extractfile(member) for member in held if member.isfile()}
            files = {name: data.read() for name, data in members.items() if data is not None}
    return {name: data for name, data in files.items() if not any(part in name for part in CLUTTER)}


def in_wheel(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of the tree that a wheel should hold, by their paths in it."""
    parts = {name: name.partition("/") for name in files if name not in BESIDE}
    return {f"{PLACES[top]}/{inner}": files[name] for name, (top, _, inner) in parts.items()}


def difference(ours: dict[str, bytes], theirs: dict[str, bytes]) -> str:
    """Return how the second set of files differs from the first, in words; "" for not at all."""
    lacking, more = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    other = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    said = [(lacking, "lacks"), (more, "has besides"), (other, "has otherwise")]
    return "; ".join(f"{verb} {', '.join(names[:5])}" for names, verb in said if names)


def check_contents(out: Path, python: str) -> Iterator[tuple[str, str]]:
    """Build everything, and yield checks: what was checked, and what is wrong or "".

    Args:
        out: an empty folder, in which wheel and sdist stay.
        python: that has build and setuptools.
    """
    wheel, sdist, files = build(out, python)
    yield f"{wheel.name} holds the packages", difference(in_wheel(files), contents(wheel))
    with zipfile.ZipFile(wheel) as held:
        licence = [name for name in held.namelist() if name.endswith("dist-info/licenses/LICENSE")]
    yield f"{wheel.name} holds the licence", "" if licence else "no LICENSE"
    yield f"{sdist.name} holds the sources", difference(files, contents(sdist))
    with tempfile.TemporaryDirectory() as folder:
        again = wheel_of(sdist, Path(folder), python)
        yield f"{sdist.name} gives the same wheel", difference(contents(wheel), contents(again))


@dataclass(frozen=True)
class Environment:
    """A new environment of a Python.

    Attributes:
        folder: of the environment.
    """

    folder: Path

    @classmethod
    def new(cls, folder: Path, python: str, seen: Sequence[Path]) -> Environment:
        """Create one; `seen` are folders of packages that it sees beside its own."""
        run([python, "-m", "venv", folder], Path.cwd())
        made = cls(folder)
        (made.packages / "seen.pth").write_text("".join(f"{path}\n" for path in seen), encoding="utf-8")
        return made

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next(self.folder.glob("lib/python*/site-packages"))

    def call(self, *words: object, inside: Path | None = None) -> str:
        """Run a program of the environment, outside the checkout."""
        return run([self.folder / "bin" / str(words[0]), *words[1:]], inside or self.folder, OMP_WAIT_POLICY="passive")

    def install(self, *what: object) -> None:
        self.call("pip", "install", "--quiet", "--no-cache-dir", "-c", ROOT / "constraints.txt", *what)


def check_use(core: Environment, wheel: Path, quickstart: bool) -> Iterator[tuple[str, str]]:
    """Install the wheel, use it, and yield checks."""
    core.install(wheel)
    where = core.call("python", "-c", "import gen, gen.kernels.attention; print(gen.__file__)")
    yield "import", "" if str(core.folder) in where else f"gen is imported from {where}"
    for words in (["--version"], ["list"], ["doctor"], *([["quickstart"]] if quickstart else [])):
        with tempfile.TemporaryDirectory() as empty:
            began = time.perf_counter()
            core.call("gen", *words, inside=Path(empty))
            yield f"gen {words[0]} ({time.perf_counter() - began:.0f} s)", ""


def import_names(extra: str) -> list[str]:
    """Return what the packages of an extra are imported as."""
    packages = [re.split("[^\\w.-]", line)[0] for line in EXTRAS[extra]]
    return [IMPORTED.get(package, package.replace("-", "_")) for package in packages]


def check_extras(env: Environment, wheel: Path, extras: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Install extras together, and yield a check for each package: "" if it is imported, or is refused in one line."""
    name = f"{wheel}[{','.join(extras)}]"
    env.install(name)
    for package in [package for extra in extras for package in import_names(extra)]:
        code = f"import gen, importlib\ntry:\n    importlib.import_module({package!r})\n"
        code += "except Exception as error:\n    print(type(error).__name__, *str(error).split())"
        refused = env.call("python", "-c", code).strip().splitlines()
        yield f"{package}{f', refused: {refused[-1][:200]}' if refused else ''}", ""
    env.call("python", "-m", "gen", "list")  # the wheel lies in the core's environment
    code = "from gen.cli.doctor import examine\nfor one in examine():\n"
    code += "    if one.status == 'fail':\n        print(one.subject, one.detail)"
    fails = env.call("python", "-c", code).strip().splitlines()
    yield f"gen list, gen doctor{f', which refuses {fails[0][:200]}' if fails else ''}", ""


def check_python(python: str, torch: Path | None, wheel: Path, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the checks of one Python."""
    with tempfile.TemporaryDirectory() as folder:
        seen = [] if torch is None else [torch]
        core = Environment.new(Path(folder, "core"), python, seen)
        yield from check_use(core, wheel, not args.no_quickstart)
        alone = [(extra,) for extra in args.extras]
        together = [tuple(args.extras)] if len(alone) > 1 else []
        for extras in [*alone, *together]:
            env = Environment.new(Path(folder, "extra"), python, [core.packages, *seen])
            for what, wrong in guarded(check_extras(env, wheel, extras)):
                yield f"[{extras[0] if len(extras) == 1 else 'all extras'}] {what}", wrong
            shutil.rmtree(env.folder)


def guarded(checks: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield checks; a command that fails is one that is wrong."""
    try:
        yield from checks
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        yield "command", str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, for the wheel and the sdist")
    parser.add_argument("--python", nargs="*", default=[], help="interpreters in which the wheel is used")
    parser.add_argument("--torch", nargs="*", type=Path, default=[], help="a folder with torch for each interpreter")
    parser.add_argument("--extras", nargs="*", default=list(EXTRAS), choices=list(EXTRAS))
    parser.add_argument("--no-quickstart", action="store_true", help="leave out the two minutes of gen quickstart")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True)
    failed = 0

    def report(checks: Iterator[tuple[str, str]], about: str) -> None:
        nonlocal failed
        for what, wrong in guarded(checks):
            failed += bool(wrong)
            print(f"{'fail' if wrong else 'ok':<5} {about}{what}{f': {wrong}' if wrong else ''}", flush=True)

    report(check_contents(args.out.resolve(), sys.executable), "")
    if failed:
        return 1
    (wheel,) = args.out.resolve().glob("*.whl")
    for python, torch in itertools.zip_longest(args.python, args.torch):
        report(check_python(python, torch, wheel, args), f"{Path(python).name}: ")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
