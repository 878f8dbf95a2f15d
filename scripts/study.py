"""Compare trainings: every entry of a study trained from several seeds, FID as mean and standard error over them.

    python scripts/study.py benchmarks/families.toml [--only NAME ...] [--jobs 2] [--out runs/families]

A study is a TOML file: `recipe`, `seeds`, `[set]` (dotted keys for all entries) and one table `[entries.NAME]` of
dotted keys each; the first entry is the baseline. An entry with a `method` of gen.distill is distilled from the run of
the same seed of another entry, its `teacher` (default: the first). `evaluate`: the numbers of steps to sample in
(default: as the run says). Every run is resumed where it was stopped and kept in OUT/NAME-SEED. Writes
OUT/leaderboard.html of all runs and benchmarks/results/<study>.json, of which scripts/tables.py makes the tables of
docs/, and prints a table.
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
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime

import torch

import gen
from gen.config.errors import UserError, nearest
from gen.config.reading import read_json, read_toml
from gen.config.spec import find, override
from gen.config.writing import write_json
from gen.eval.estimate import Estimate
from gen.eval.evaluate import evaluate
from gen.eval.leaderboard import leaderboard
from gen.training.log import read_metrics

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def flat(table, prefix=""):
    """Nested TOML tables as dotted keys; a table with a name, or in a list, is a spec and stays one."""
    for key, value in table.items():
        if isinstance(value, dict) and "name" not in value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


OWN = ("method", "teacher", "evaluate")  # keys of an entry that are the study's, not the run's


def one(job):
    """Trains and evaluates one entry from one seed, a row for each number of steps; what is done is not done again."""
    study, name, seed, out, samples = job
    torch.set_num_threads(1)
    entry, folder = study["entries"][name], out / f"{name}-{seed}"
    done = folder / "study.json"
    if done.exists():
        return read_json(done)
    changes = {key: value for key, value in flat(entry) if key not in OWN} | {"seed": seed}
    began = time.perf_counter()
    if "method" in entry:
        teacher = out / f"{taught_by(study, name)}-{seed}"
        gen.distill(
            entry["method"], teacher, folder, changes=dict(flat(study.get("students", {}))) | changes, quiet=True
        )
    else:
        run = override(find(study["recipe"], "training.recipes")(), dict(flat(study.get("set", {}))) | changes)
        gen.train(run, folder, quiet=True)
    seconds = time.perf_counter() - began
    rows = [measured(folder, name, seed, steps, samples) for steps in entry.get("evaluate", [None])]
    for row in rows:
        row["ms_per_step"] = 1000 * seconds / row["steps"]
    write_json(done, rows)
    scores = ", ".join(f"{row['fid']:.2f} at {row['nfe']:g}" for row in rows)
    print(f"{name}, seed {seed}: FID {scores} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return rows


def measured(folder, name, seed, steps, samples):
    """The row of one run, sampled in so many steps."""
    pipeline = gen.load(folder)
    how = {} if steps is None else {"steps": steps}
    label = f"{name}, seed {seed}" if steps is None else f"{name}, {steps} step{'s' if steps > 1 else ''}, seed {seed}"
    record = evaluate(pipeline, n=samples, seed=seed, label=label, seconds=0.5, out=folder / "eval", **how)
    pixels = evaluate(pipeline, n=samples, seed=seed, extractor="pixels", metrics=["fid"], seconds=0.1, **how)
    curve = [(row["step"], row["val_loss"]) for row in read_metrics(folder / "metrics.jsonl") if "val_loss" in row]
    row = {"name": name, "nfe": record.nfe, "seed": seed, "steps": pipeline.info["step"], "params": pipeline.params}
    row |= {key: record.estimate(key).value for key in ("fid", "accuracy", "recall", "coverage")}
    return row | {
        "pixel_fid": pixels.estimate("fid").value,
        "val_loss": curve[-1][1] if curve else None,
        "curve": curve,
    }


def taught_by(study, name):
    """The entry that an entry is distilled from, or none."""
    entry, names = study["entries"][name], list(study["entries"])
    if "method" not in entry:
        return None
    teacher, before = entry.get("teacher", names[0]), names[: names.index(name)]
    if teacher not in before:
        raise UserError(
            f"entry {name!r} learns from {teacher!r}, which is no entry before it. {nearest(teacher, before)}"
        )
    return teacher


def turns(study, chosen):
    """The entries in turns, each of them after the one that it is distilled from."""
    depth = {None: -1}

    def deep(name):
        if name not in depth:
            depth[name] = 1 + deep(taught_by(study, name))
        return depth[name]

    needed = [name for name in study["entries"] if any(name in lineage(study, one) for one in chosen)]
    return [[name for name in needed if deep(name) == k] for k in range(1 + max(map(deep, needed)))]


def lineage(study, name):
    """An entry, and all that it descends from."""
    while name is not None:
        yield name
        name = taught_by(study, name)


def summary(rows):
    """One row for each entry and number of evaluations: the mean over its seeds and the standard error of that mean."""
    for name, nfe in dict.fromkeys((row["name"], row["nfe"]) for row in rows):
        mine = [row for row in rows if (row["name"], row["nfe"]) == (name, nfe)]
        about = {"name": name, "nfe": nfe, "seeds": len(mine), "steps": mine[0]["steps"], "params": mine[0]["params"]}
        for key in ("fid", "pixel_fid", "accuracy", "recall", "coverage", "ms_per_step"):
            values = [row[key] for row in mine]
            se = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            about[key] = {"value": statistics.mean(values), "se": se, "each": values}
        if mine[0]["curve"]:
            columns = zip(*(row["curve"] for row in mine), strict=False)
            about["curve"] = [(points[0][0], statistics.mean(value for _, value in points)) for points in columns]
        yield about


def table(rows, baseline=None):
    """Markdown; ratios are to the `baseline`, the first row unless another is named."""
    first = baseline or rows[0]
    heads = (
        "",
        "NFE",
        "seeds",
        "steps",
        "FID",
        "ratio",
        "FID of pixels",
        "accuracy",
        "recall",
        "coverage",
        "time per step",
    )
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        ratio = row["fid"]["value"] / first["fid"]["value"]
        fid, pixels = (Estimate(row[key]["value"], row[key]["se"], row["seeds"]) for key in ("fid", "pixel_fid"))
        cells = [row["name"], f"{row['nfe']:g}", str(row["seeds"]), str(row["steps"])]
        cells += [fid.text(), f"{ratio:.2f}", pixels.text()]
        cells += [f"{row[key]['value']:.3f}" for key in ("accuracy", "recall", "coverage")]
        yield f"| {' | '.join(cells)} | {row['ms_per_step']['value'] / first['ms_per_step']['value']:.1f} |"


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--only", nargs="+", help="these entries (default: all)")
    parser.add_argument("--seeds", type=int, help="how many (default: what the study says)")
    parser.add_argument("-n", "--n", type=int, default=1000, help="for each evaluation (default: 1000)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--report", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--out", type=Path, help="(default: runs/ and the study's name)")
    args = parser.parse_args(given)
    study = read_toml(args.study)
    chosen = args.only or list(study["entries"])
    for name in chosen:
        if name not in study["entries"]:
            raise UserError(f"{args.study} has no entry {name!r}. {nearest(name, study['entries'])}")
    out, seeds = args.out or Path("runs") / args.study.stem, args.seeds or study["seeds"]
    rows = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for names in turns(study, chosen):
            jobs = [(study, name, seed, out, args.n) for seed in range(seeds) for name in names]
            if args.report:
                jobs = [job for job in jobs if (out / f"{job[1]}-{job[2]}" / "study.json").exists()]
            rows += [row for of_one in (map if args.report else pool.map)(one, jobs) for row in of_one]
    rows = list(summary(rows))
    print(*table(rows, next((row for row in rows if row["nfe"] == study.get("nfe")), None)), sep="\n")
    leaderboard(sorted(out.glob("*/eval/*.json")), out / "leaderboard.html", title=args.study.stem)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    about |= {"cpu": platform.processor() or platform.machine(), "samples": args.n, "study": study}
    if chosen == list(study["entries"]):
        write_json(RESULTS / f"{args.study.stem}.json", about | {"rows": rows})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"study: {error}")
