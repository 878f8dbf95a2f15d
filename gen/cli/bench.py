"""Measure how fast this machine runs gen and its peers: attention, fused operations, state spaces, networks.

gen bench attention fused --device cuda --out runs/bench/mine [--resume]; without a part, all of them.
gen bench --plan benchmarks/gpu.toml --device cuda; with --quick tiny cases take the same path on a CPU.

Every case first compares each result with the exact one; a wrong one is not timed, and the exit code is 1. The others
are timed in turns. A part is one JSON file of the folder, written anew after every case; bench.html shows all of them.
Cases of a part during which the machine was not quiet (gen.eval.quiet) are refused: they are taken out again.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import add_option, add_options
from gen.config.errors import UserError, nearest
from gen.config.formats import NEWEST, check_format
from gen.config.spec import Json

if TYPE_CHECKING:
    from torch import Tensor

    from gen.cli.benches.lib.plan import BenchStep
    from gen.eval.bench import Bench, BenchContext, Case
    from gen.training.speed import MakeProduct

__all__ = ["add_arguments", "run"]

PARTS = sorted(file.stem for file in (Path(__file__).parent / "benches").glob("[!_]*.py"))
DTYPES = ("float32", "bfloat16", "float16")
SETTING = ("format", "part", "machine", "versions", "dtype", "quick", "seed")  # of a file; its cases have them alike
PACKAGES = ("triton", "diffusers", "xformers", "transformers", "mamba-ssm", "flash-linear-attention")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", nargs="*", help=f"one or more of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32 on a CPU, bfloat16 elsewhere)")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time for a case (default: 4)")
    add_option(parser, "seed", 0, "seed of the inputs")
    parser.add_argument("--only", metavar="TEXT", help="cases whose names contain this")
    parser.add_argument("--quick", action="store_true", help="tiny cases, few rounds, nothing compiled: for tests")
    parser.add_argument("--list", action="store_true", help="list the cases, and stop")
    parser.add_argument("--resume", action="store_true", help="skip cases that the folder has with the same settings")
    parser.add_argument(
        "--plan", type=Path, help="a TOML file of cases in their order, as benchmarks/gpu.toml; resumes always"
    )
    add_option(parser, "out", help="a folder (default: runs/bench/DEVICE-DTYPE)")
    add_options(parser, device="cpu", threads=None)


def run(args: argparse.Namespace) -> int:
    from gen.config.devices import check_device
    from gen.eval.bench import Bench, BenchContext

    context = _context(args, BenchContext)
    steps = _steps(args)
    if (args.threads is not None and args.threads < 1) or not args.seconds > 0:
        raise UserError(f"--threads {args.threads}, --seconds {args.seconds}: at least 1, and above 0")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: it must be in 0 .. 2^63 - 1")
    found = {step: [case.name for case in step.cases(context)] for step in steps}
    if none := [step for step in steps if not found[step] and (args.plan or not any(found.values()))]:
        parts = ", ".join(step.part for step in none)
        raise UserError(f"--only {none[0].only!r}: no case of {parts} has this in its name; see --list")
    steps = [step for step in steps if found[step]]
    if args.list:
        for step in steps:
            print(step.part, *(f"  {name}" for name in found[step]), sep="\n")
        return 0
    check_device(args.device)
    how: Json = {"rounds": 6, "block": 1e-9, "rotate": 0} if args.quick else {}
    bench = Bench(context.device, seconds=args.seconds, seed=args.seed, **how)
    folder = args.out or Path("runs/bench") / _name(context)
    _check_folder(folder)
    wrong: list[str] = []
    with _threads(args.threads):
        for step in steps:
            wrong += _measure(step, context, bench, folder, args)
            _page(folder)
    print(f"{folder / 'bench.html'}: {len(wrong)} wrong or refused" if wrong else folder / "bench.html")
    return int(bool(wrong))


def _steps(args: argparse.Namespace) -> list[BenchStep]:
    from gen.cli.benches.lib.plan import BenchStep, read_plan

    if args.plan is None:
        return [BenchStep(_part(given), args.only) for given in dict.fromkeys(args.part or PARTS)]
    if args.part or args.only:
        raise UserError("--plan says what is measured: give no part and no --only with it")
    steps = read_plan(args.plan, args.quick)
    for step in steps:
        _part(step.part)
    return steps


def _measure(step: BenchStep, context: BenchContext, bench: Bench, folder: Path, args: argparse.Namespace) -> list[str]:
    """Measure the cases of a step that its part's file lacks, writing it after each; return the names of wrong ones.

    Those measured while others worked, or between two ceilings that differ, are refused: they are wrong too.
    """
    from gen.config.writing import write_json
    from gen.eval.bench import measure_peak
    from gen.eval.pages.bench import bench_table
    from gen.eval.quiet import LoadMeter, disturbance

    part, path = step.part, folder / f"{step.part}.json"
    old = _read(path) if (args.resume or args.plan) and path.exists() else {"cases": []}
    done = {record["key"]: record for record in old["cases"] if record["gate"]["ok"]}
    file, products, refused = _about(part, context, args), _products(context), list[str]()
    same = all(old.get(name) == file[name] for name in SETTING)
    peak = measure_peak(context, others=products)
    file |= {"peak": vars(peak), "cases": []}
    print(f"{part}: {peak.flops / 1e12:.3g} TFLOP/s, {peak.bytes / 1e9:.3g} GB/s ({peak.what})", flush=True)
    for case in step.cases(context):
        key, meter = _key(case, file, bench), LoadMeter()
        record = done.get(key) or {"key": key, **bench.measure(case, peak), "others": meter.others()}
        print(bench_table(record) if key not in done else f"{case.name}: measured before", flush=True)
        if (reason := _disturbed(context, disturbance(peak, peak, record["others"]))) and key not in done:
            print(f"{case.name}: refused: {reason}. Run it again with --resume when the machine is quiet", flush=True)
            refused.append(case.name)
            continue
        file["cases"].append(record)
        write_json(path, {**file, "cases": [*file["cases"], *_pending(done, file["cases"])]})
    after = measure_peak(context, others=products)
    file["peak_after"] = vars(after)
    if reason := _disturbed(context, disturbance(peak, after, None)):
        new = [record["case"] for record in file["cases"] if record["key"] not in done]
        file["cases"] = [record for record in file["cases"] if record["key"] in done]
        print(f"{part}: {len(new)} cases refused: {reason}. Run it again with --resume when the machine is quiet")
        refused += new
    wrong = [record["case"] for record in file["cases"] if not record["gate"]["ok"]]
    file["cases"] += _pending(done, file["cases"]) if same else []
    write_json(path, file)
    return refused + wrong


def _disturbed(context: BenchContext, reason: str | None) -> str | None:
    """Return the reason; None for tiny cases, which are for tests."""
    return None if context.quick else reason


def _products(context: BenchContext) -> tuple[MakeProduct, ...]:
    """Return matrix products beside PyTorch's: oneDNN's with weights in its own layout, the faster on many CPUs."""
    import torch

    from gen.kernels.linear import linear, pack, unpackable

    def packed(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
        weight = pack(b)
        return lambda: linear(a, weight)

    able = unpackable(torch.empty(1, 1, dtype=context.dtype, device=context.device)) is None
    return (packed,) if able else ()


def _pending(done: dict[str, Json], current: list[Json]) -> list[Json]:
    """Return the earlier records of other cases: those that are still to come, and those of other steps."""
    seen = {record["case"] for record in current}
    return [record for record in done.values() if record["case"] not in seen]


def _part(given: str) -> str:
    if given not in PARTS:
        raise UserError(f"unknown part {given!r}. {nearest(given, PARTS)}")
    return given


def _context(args: argparse.Namespace, make: type[BenchContext]) -> BenchContext:
    import torch

    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    dtype = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    return make(device, getattr(torch, dtype), args.quick)


def _name(context: BenchContext) -> str:
    return f"{context.device.type}-{str(context.dtype).removeprefix('torch.')}{'-quick' if context.quick else ''}"


def _about(part: str, context: BenchContext, args: argparse.Namespace) -> Json:
    """Return the part, the machine, the versions and the date of a measurement."""
    from datetime import UTC, datetime

    import torch

    from gen.eval.quiet import about_machine
    from gen.training.resume import versions

    packages = {name: _version(name) for name in PACKAGES}
    cudnn = torch.backends.cudnn.version() if context.cuda else None
    cuda = {"cuda": torch.version.cuda, "cudnn": cudnn}
    return {
        "format": NEWEST["bench"],
        "part": part,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(args),
        "machine": about_machine(context.device),
        "versions": versions() | packages | cuda,
        "dtype": str(context.dtype).removeprefix("torch."),
        "quick": context.quick,
        "seed": args.seed,
    }


def _key(case: Case, file: Json, bench: Bench) -> str:
    """Return the hash of case, versions, machine and settings; measurements of one key can replace each other."""
    import hashlib
    import json

    about = {name: file[name] for name in SETTING}
    how = {"rounds": bench.rounds, "seconds": bench.seconds, "block": bench.block, "rotate": bench.rotate}
    given = json.dumps([case.settings(), about, how], sort_keys=True)
    return hashlib.sha256(given.encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> Json:
    """Read a file of this verb; UserError for any other."""
    from gen.config.reading import read_json

    file: Json = read_json(path)
    check_format(file, NEWEST["bench"], path)
    cases = file.get("cases")
    if not isinstance(cases, list) or not all(
        isinstance(c, dict) and {"key", "gate", "calls"} <= set(c) for c in cases
    ):
        raise UserError(f"{path} is no file of gen bench; move it away")
    return file


def _check_folder(folder: Path) -> None:
    """Check, before any work, that the folder can be written and its files can be read."""
    import os

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: it cannot be created ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out {folder}: it cannot be written")
    for path in (folder / f"{part}.json" for part in PARTS):
        if path.exists():
            _read(path)


def _page(folder: Path) -> None:
    """Write the page of all parts that the folder holds."""
    from gen.config.writing import write_text
    from gen.eval.pages.bench import bench_page

    files = [_read(path) for path in (folder / f"{part}.json" for part in PARTS) if path.exists()]
    write_text(folder / "bench.html", bench_page(files))


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Set torch's thread count; restore it on exit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _command(args: argparse.Namespace) -> str:
    """Return the command line that repeats this."""
    words = ["gen", "bench", *args.part, "--device", args.device, "--seconds", f"{args.seconds:g}"]
    single = {
        "dtype": args.dtype,
        "threads": args.threads,
        "seed": args.seed or None,
        "only": args.only,
        "plan": args.plan,
    }
    for key, value in {**single, "out": args.out}.items():
        words += [f"--{key}", str(value)] if value is not None else []
    return shlex.join([*words, *(["--quick"] if args.quick else [])])
