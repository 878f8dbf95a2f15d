"""Which feature caches are worth it: FID against images per second, beside the same model sampled in fewer steps.

    python scripts/cache_front.py RUN [--steps 50] [-n 1000] [--out DIR]

Evaluates the run without a cache, with every cache at every interval or threshold, and, for each of these, without a
cache in as many steps as take the same time. All are then timed in turns, so that their speeds can be compared. Writes
DIR/leaderboard.html, .csv, .md, and the records to DIR/records, and names the cached rows on the Pareto front.
-n, --timed, --caches, --intervals and --thresholds bound the time it takes.

Measured (2026-11-22) on the quickstart's teacher, Euler, 24 steps, --intervals 2 3 4: the front holds taylorseer at 2
and 3 and taylorseer_lite at 2, 3, 4 (FID .91, .93, 1.00 +- .10 at 203, 265, 326 images/s; uncached .89 at 130); each is
better than fewer steps in the same time (.92, .95, 1.02), but by less than a standard error. fora is never on it.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import time
from dataclasses import replace

import torch

import gen
from gen.config.errors import UserError
from gen.eval.evaluate import evaluate
from gen.eval.leaderboard import leaderboard, table
from gen.eval.ranking import equal_time_rival, groups, pareto_front
from gen.eval.record import write_record
from gen.eval.reference import Reference
from gen.eval.throughput import InterleavedTiming, spread

EVERY = ("fora", "taylorseer", "taylorseer_lite")  # caches with an interval
BELOW = ("cg_taylor", "fbcache", "teacache")  # caches with a threshold


def caches(names, intervals, thresholds):
    """(label, spec) of every one asked for."""
    for name in names:
        if name in EVERY:
            yield from ((f"{name}, every {k}", {"name": name, "interval": k}) for k in intervals)
        elif name in BELOW:
            yield from ((f"{name}, below {x:g}", {"name": name, "threshold": x}) for x in thresholds)
        else:
            raise UserError(f"unknown cache {name!r}; allowed: {', '.join([*EVERY, *BELOW])}")


class Front:
    """The evaluations of one run, and how each was sampled."""

    def __init__(self, pipeline, reference, args):
        self.pipeline, self.reference, self.args = pipeline, reference, args
        self.entries = []  # (record, keywords)

    def add(self, label, **how):
        args = self.args
        began, how = time.perf_counter(), {"solver": args.solver, "steps": args.steps, **how}
        timing = {"seconds": args.seconds, "timed": args.timed}
        record = evaluate(self.pipeline, self.reference, n=args.n, seed=args.seed, label=label, **timing, **how)
        self.entries.append((record, how))
        fid, took = record.estimate("fid"), time.perf_counter() - began
        print(f"{label}: FID {fid.text()} ({took:.0f} s)", file=sys.stderr, flush=True)
        return record

    def time(self):
        """Measure every record's speed again, all in turns."""
        batch = min(self.args.timed, self.args.n)
        keys = {"n": batch, "batch_size": batch, "seed": self.args.seed}
        calls = [lambda how=how: self.pipeline.sample(**how, **keys) for _, how in self.entries]
        rounds = InterleavedTiming(seconds=self.args.seconds).measure(calls)
        for i, times in enumerate(zip(*rounds, strict=True)):
            record, how = self.entries[i]
            speed = replace(record.speed, blocks=len(times), steady=True, **spread(times, batch))
            self.entries[i] = replace(record, speed=speed), how

    def write(self, out):
        records = [record for record, _ in self.entries]
        for record in records:
            write_record(record, out / "records")
        name = self.pipeline.name
        return leaderboard(records, out / "leaderboard.html", title=f"{name}: feature caches and fewer steps")


def verdict(records):
    """Yield lines: the cached rows on the front, each with the uncached steps that take as long."""
    (group,) = groups(records)
    best = pareto_front(group)
    cached = [row for row in group.rows if row.record.cache]
    winners = [row for row in cached if row in best]
    yield f"{len(winners)} of {len(cached)} cached rows are on the Pareto front of FID against images per second:"
    for row in winners:
        fid, speed = row.record.estimate("fid"), row.record.speed.images_per_second
        line = f"  #{row.rank} {row.record.label}: FID {fid.text()} at {speed:,.0f} images/s"
        other = equal_time_rival(group, row)
        if other is not None:
            theirs = other.record.estimate("fid")
            line += f"; {other.record.label}: {theirs.text()}{'' if fid.differs(theirs) else ', a tie'}"
        yield line


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a trained run")
    parser.add_argument("--steps", type=int, default=50, help="of the cached loops (default: 50)")
    parser.add_argument("--solver", default="euler", help="(default: euler)")
    parser.add_argument("-n", "--n", type=int, default=1000, help="for each row (default: 1000)")
    parser.add_argument("--caches", nargs="+", default=["fora", "taylorseer", "taylorseer_lite", "cg_taylor"])
    parser.add_argument("--intervals", nargs="+", type=int, default=[2, 3, 4, 6], help="of the caches that have one")
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.02, 0.05, 0.1], help="of the others")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time for each timing (default: 1)")
    parser.add_argument("--timed", type=int, default=50, help="samples in a timed batch (default: 50)")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--extractor", default="digits_cnn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="(default: RUN/cache_front)")
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    pipeline = gen.load(args.run)
    pipeline = replace(pipeline, sampler=replace(pipeline.sampler, cache=None))
    run = Front(pipeline, Reference.open(args.data, "test", args.extractor), args)
    chosen = list(caches(args.caches, args.intervals, args.thresholds))
    run.add(f"no cache, {args.steps} steps")
    equal = [run.add(label, cache=cache).cache.equal_steps for label, cache in chosen]
    for steps in sorted({k for k in equal if k != args.steps}, reverse=True):
        run.add(f"no cache, {steps} step{'' if steps == 1 else 's'}", steps=steps)
    run.time()
    page = run.write(args.out or args.run / "cache_front")
    records = [record for record, _ in run.entries]
    print(table(records), *verdict(records), page, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
