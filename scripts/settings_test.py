"""Give wrong settings through Python, JSON, TOML and the command line; each must end soon, in one line or in order.

python scripts/settings_test.py --tries 500

Settings are drawn from the fields of all plug-ins, of Run, Sampler and Decoding, and from the options of the verbs, and
get values such as null, NaN, -1, 10^39 or a list; a few commands are written by hand. Every try runs in a process of
its own. A fault is a traceback or "this should not happen", a signal, more than one line of error, more than --seconds,
or, where the command fails, a changed byte in the run folder. Prints a JSON object; exit 1 if there is a fault.

Measured (2026-11-29, 2 cores of an AMD EPYC, Python 3.11, torch 2.13): 500 tries, 0 faults; the tree before the one
checker of settings had 9 in 120.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from gen.cli import main, verbs
from gen.cli.list import FOLDERS
from gen.config.checkpoints import write_json
from gen.config.errors import UserError
from gen.config.spec import convert, find, names, spec_of
from gen.text.decoding import Decoding
from gen.training.objectives.denoise import Denoising
from gen.training.run import Run, Sampler, run_spec
from gen.training.trainer import train

MODEL = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2}
WRONG: list[Any] = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    0.5,
    float("nan"),
    float("inf"),
    10**39,
    [],
    {},
    [None],
    [2, 3],
    "\0",
    ":",
]
VERBS = ("train", "distill", "sample", "evaluate", "search", "pairs", "ema", "export", "leaderboard", "list", "import")
BY_HAND = [
    "train {run}/run.json --optim.betas [2,3]",
    "train {run}/run.json --optim.lr 1e999",
    "train {run}/run.json --optim null",
    "train {run}/run.json --model :",
    "train {run}/run.json --workers -1",
    "train {run}/run.json --save_every -1",
    "train {run}/run.json --threads 99999999",
    "train {run}/run.json --steps 10000000000000000000000000000000000000000",
    "train {run}/run.json --sampler.solver 3",
    "train {run}/run.json --ema null",
    "train {run}/run.json --path.nothing 3",
    "train {run}/run.json --data.path.x.y 1",
    "sample {run} -n 100000000000",
    "sample {run} --steps 1000000000000",
    "sample {run} --guide [[[[[[[[",
    "sample {run} --labels 1,2,,",
    "sample {run} --device meta",
    "evaluate {run} -n 1e11",
    "distill reflow --teacher {run} --objective.pairs -5",
    "leaderboard {run}/run.json",
]


def tiny() -> Run:
    """Return the run that is trained once, and whose settings go wrong."""
    return Run(
        model=MODEL, data="digits", objective=Denoising(), sampler=Sampler("euler", steps=1), steps=2, batch_size=4,
        sample_every=0, validate_every=0, save_every=0,
    )  # fmt: skip


def settings() -> list[Any]:
    """Return objects of all plug-ins that can be built without arguments, and of what is built of them."""
    things: list[Any] = [tiny(), Sampler(), Decoding()]
    for folder in FOLDERS:
        for owner in (find(name, folder) for name in names(folder)):
            try:
                things += [owner()] if dataclasses.is_dataclass(owner) else []
            except TypeError:  # a field without a default
                continue
    return things


def by_python(draw: random.Random, things: list[Any], run: Path) -> tuple[str, Callable[[], int]]:
    """Draw a field of an object and a value for it."""
    thing = draw.choice(things)
    field, value = draw.choice([f.name for f in dataclasses.fields(thing) if f.init] or [""]), draw.choice(WRONG)

    def replace() -> int:
        try:
            changed = dataclasses.replace(thing, **{field: value} if field else {})
            saved = json.loads(json.dumps(spec_of(changed, named=False), allow_nan=False))
            assert convert(saved, type(thing), "it") == changed, "it is not read as it was saved"
        except UserError as error:
            print(f"gen: {error}", file=sys.stderr)
            return 2
        return 0

    return f"{type(thing).__name__}({field}={value!r:.60})", replace


def by_json(draw: random.Random, things: list[Any], run: Path) -> tuple[str, Callable[[], int]]:
    """Draw a key of a run.json, at any depth, and a value for it."""
    spec = run_spec(tiny())
    inner, path = spec, [draw.choice(list(spec))]
    while isinstance(inner[path[-1]], dict) and inner[path[-1]] and draw.random() < 0.7:
        inner = inner[path[-1]]
        path.append(draw.choice(list(inner)))
    inner[path[-1]] = draw.choice(WRONG)
    file = run.parent / "settings.json"
    file.write_text(json.dumps({"run": spec}))
    what = f"{'.'.join(path)} = {inner[path[-1]]!r:.60}"
    out = run.parent / f"new-{draw.random()}"
    return what, lambda: main(["train", str(file), "--out", str(out), "--quiet"])


def by_toml(draw: random.Random, things: list[Any], run: Path) -> tuple[str, Callable[[], int]]:
    """Draw a value in a leaderboard's list."""
    key, value = draw.choice(["path", "label", "labl", "entry"]), draw.choice([v for v in WRONG if v is not None])
    text = json.dumps(value) if not isinstance(value, float) else repr(value)
    file = run.parent / "settings.toml"
    file.write_text(
        f"[[entry]]\npath = {json.dumps(str(run))}\n{key} = {text}\n" if key != "entry" else f"entry = {text}\n"
    )
    return f"{key} = {text:.60}", lambda: main(["leaderboard", str(file), "--out", str(run.parent / "page.html")])


def by_words(draw: random.Random, things: list[Any], run: Path) -> tuple[str, Callable[[], int]]:
    """Draw an option of a verb and a value; or a command that was written by hand."""
    if draw.random() < 0.2:
        words = draw.choice(BY_HAND).split()
    else:
        verb = draw.choice(VERBS)
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"gen.cli.{verb}").add_arguments(parser)
        options = [a.option_strings[-1] for a in parser._actions if a.option_strings and a.nargs != 0]
        given = {
            "distill": ["reflow", "--teacher", "{run}"],
            "pairs": ["--teacher", "{run}", "--out", "{run}/../pairs"],
        }
        start = given.get(verb, ["{run}"] if verb not in ("list",) else [])
        value = draw.choice(WRONG)
        words = [
            verb,
            *start,
            draw.choice(options or ["--nothing"]),
            value if isinstance(value, str) else json.dumps(value),
        ]
    words = [word.replace("{run}", str(run)) for word in words]
    return " ".join(map(repr, words)), lambda: main(words)


def attempt(call: Callable[[], int], run: Path, seconds: float) -> str | None:
    """Make a call in a process of its own; return what is wrong with how it ends, or None."""
    before, output = fingerprint(run), run.parent / "output"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            code = call()
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + seconds
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return f"no end within {seconds:g} s"
        time.sleep(0.01)
    text = output.read_text(errors="replace")
    return judge(os.waitstatus_to_exitcode(status[1]), text, before != fingerprint(run))


def judge(code: int, text: str, changed: bool) -> str | None:
    """Return the fault in an exit code and an output, or None."""
    errors = [line for line in text.splitlines() if line.startswith("gen: ")]
    if code < 0 or code == 99 or "Traceback (most recent" in text or "should not happen" in text:
        return f"exit {code}: {text[-300:]}"
    if code and len(errors) != 1:
        return f"{len(errors)} lines of error: {text[-300:]}"
    return "it failed, and changed the run" if code and changed else None


def fingerprint(folder: Path) -> str:
    """Return a hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def torment(folder: Path, tries: int, seed: int, seconds: float) -> dict[str, Any]:
    """Train a run, make the tries, and return counts and faults."""
    run = folder / "run"
    train(tiny(), run, quiet=True)
    write_json(run / "run.json", json.loads((run / "run.json").read_text()))
    for verb in verbs():  # what is imported here need not be by every child
        importlib.import_module(f"gen.cli.{verb.replace('-', '_')}")
    draw, things, faults = random.Random(seed), settings(), []
    ways = [by_python, by_json, by_toml, by_words]
    os.chdir(folder)
    for i in range(tries):
        what, call = ways[i % len(ways)](draw, things, run)
        fault = attempt(call, run, seconds)
        if fault is not None:
            faults.append({"way": ways[i % len(ways)].__name__, "what": what, "fault": fault})
    return {"tries": tries, "faults": len(faults), "list": faults}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="that a try may take (default: 60)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = torment(Path(folder), args.tries, args.seed, args.seconds)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["faults"]))
