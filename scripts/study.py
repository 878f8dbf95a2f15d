"""Compare trainings: every entry of a study trained from several seeds, FID as mean and standard error over them.

    python scripts/study.py benchmarks/families.toml [--only NAME ...] [--jobs 2] [--out runs/families]

A study is a TOML file: `recipe`, `seeds`, `[set]` (dotted keys for all entries) and one table `[entries.NAME]` of
dotted keys each; the first entry is the baseline. Every run is resumed where it was stopped and kept in OUT/NAME-SEED.
Writes OUT/leaderboard.html of all runs, and benchmarks/results/<study>.json with a table, which is also printed.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import multiprocessing
import platform
import statistics
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime

import torch

import gen
from gen.errors import UserError, nearest
from gen.eval.evaluate import evaluate
from gen.eval.leaderboard import leaderboard
from gen.log import read_metrics
from gen.manifest import read_json, write_json
from gen.spec import find, override

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def flat(table, prefix=""):
    """Nested TOML tables as dotted keys; a table with a name, or in a list, is a spec and stays one."""
    for key, value in table.items():
        if isinstance(value, dict) and "name" not in value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def one(job):
    """Trains and evaluates one entry from one seed; what is done already is not done again."""
    study, name, seed, folder, samples = job
    torch.set_num_threads(1)
    run = find(study["recipe"], "recipes")()
    changes = dict(flat(study.get("set", {}))) | dict(flat(study["entries"][name])) | {"seed": seed}
    run = override(run, changes)
    done = folder / "study.json"
    if done.exists():
        return read_json(done)
    began = time.perf_counter()
    gen.train(run, folder, quiet=True)
    seconds = time.perf_counter() - began
    pipeline = gen.load(folder)
    record = evaluate(pipeline, n=samples, seed=seed, label=f"{name}, seed {seed}", seconds=0.5, out=folder / "eval")
    pixels = evaluate(pipeline, n=samples, seed=seed, extractor="pixels", seconds=0.1)["metrics"]["fid"]["value"]
    fid, accuracy = record["metrics"]["fid"]["value"], record["metrics"]["accuracy"]["value"]
    losses = [row["val_loss"] for row in read_metrics(folder / "metrics.jsonl") if "val_loss" in row]
    trained = sum(p.numel() for p in run.model.build().parameters() if p.requires_grad)
    row = {"name": name, "seed": seed, "steps": run.steps, "params": trained}
    row |= {"fid": fid, "accuracy": accuracy, "pixel_fid": pixels}
    row |= {"ms_per_step": 1000 * seconds / run.steps, "val_loss": losses[-1] if losses else None}
    write_json(done, row)
    print(f"{name}, seed {seed}: FID {fid:.2f} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return row


def summary(rows):
    """One row for each entry: the mean over its seeds and the standard error of that mean."""
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        about = {"name": name, "seeds": len(mine), "steps": mine[0]["steps"], "params": mine[0]["params"]}
        for key in ("fid", "pixel_fid", "accuracy", "ms_per_step"):
            values = [row[key] for row in mine]
            se = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            about[key] = {"value": statistics.mean(values), "se": se, "each": values}
        yield about


def table(rows):
    """Markdown; ratios are to the first row."""
    first = rows[0]
    yield "| | parameters | steps | FID | ratio | FID of pixels | accuracy | time per step |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        fid, pixels, ratio = row["fid"], row["pixel_fid"], row["fid"]["value"] / first["fid"]["value"]
        cells = [row["name"], f"{row['params']:,}", str(row["steps"]), f"{fid['value']:.2f} ± {fid['se']:.2f}"]
        cells += [f"{ratio:.2f}", f"{pixels['value']:.3f} ± {pixels['se']:.3f}", f"{row['accuracy']['value']:.3f}"]
        yield f"| {' | '.join(cells)} | {row['ms_per_step']['value'] / first['ms_per_step']['value']:.1f} |"


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--only", nargs="+", help="these entries (default: all)")
    parser.add_argument("--seeds", type=int, help="how many (default: what the study says)")
    parser.add_argument("--samples", type=int, default=1000, help="for each evaluation (default: 1000)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, help="(default: runs/ and the study's name)")
    args = parser.parse_args(given)
    study = tomllib.loads(args.study.read_text())
    chosen = args.only or list(study["entries"])
    for name in chosen:
        if name not in study["entries"]:
            raise UserError(f"{args.study} has no entry {name!r}. {nearest(name, study['entries'])}")
    out, seeds = args.out or Path("runs") / args.study.stem, args.seeds or study["seeds"]
    jobs = [(study, name, seed, out / f"{name}-{seed}", args.samples) for seed in range(seeds) for name in chosen]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = list(summary(list(pool.map(one, jobs))))
    lines = list(table(rows))
    print("\n".join(lines))
    leaderboard(sorted(out.glob("*/eval/*.json")), out / "leaderboard.html", title=args.study.stem)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    about |= {"cpu": platform.processor() or platform.machine(), "samples": args.samples, "study": study}
    if chosen == list(study["entries"]):
        write_json(RESULTS / f"{args.study.stem}.json", about | {"rows": rows, "table": lines})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"study: {error}")
