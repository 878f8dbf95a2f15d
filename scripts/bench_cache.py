"""What a feature cache saves: the cost of a skipped step, the latency of a whole loop, and the drift from no cache.

    python scripts/bench_cache.py [RUN ...] [--interval 3] [--steps 50] [--out FILE]
    python scripts/bench_cache.py --gates 1 8 64 250    # gates that decide for each row, at these batch sizes

On a DiT-S/2 of 256 tokens with random weights, and on each RUN folder given. One thread, processor time. Loops with and
without a cache take turns (A B B A), and medians are compared, so that a busy machine disturbs both alike. Drift is the
root mean square difference from the same noise's uncached samples, relative to their standard deviation; a random
network's says little of a trained one's.

Measured (2026-11-22, one core of a 2.5 GHz Xeon, torch 2.13), interval 3: on DiT-S/2, 8 of 20 steps in full, TaylorSeer
c = .16, 1.7x, drift 6e-6; lite with Newton of order 2 c = .013, 2.4x, drift 2e-6. On the quickstart's teacher, 18 of 50
in full, TaylorSeer c = .34, 1.6x, drift .0055; lite along lam c = .065, 2.4x, drift .0050. Which lite drifts least
differs: Newton on the first, lam on the second.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import time
from functools import partial
from statistics import median

import torch

import gen
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import BoundTap, Context
from gen.eval.quiet import QuietCheck
from gen.models.dit import DiT
from gen.samplers.caches.coordinates.lam import Lam
from gen.samplers.caches.custom import Custom
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.newton import Newton
from gen.samplers.caches.taylorseer import TaylorSeer
from gen.samplers.caches.taylorseer_lite import TaylorSeerLite
from gen.samplers.solvers.euler import Euler


def random_dit():
    """A DiT-S/2 whose blocks and output are not zero, as they are when fresh."""
    torch.manual_seed(0)
    net = DiT.preset("S/2").build()
    for name, weight in net.named_parameters():
        if "adaLN" in name or name == "final_layer.linear.weight":
            torch.nn.init.normal_(weight, std=0.02)
    return Denoiser(net.eval().requires_grad_(False), Flow(), Velocity()), (4, 32, 32), 1000


def timed(call):
    began = time.process_time()
    call()
    return time.process_time() - began


def turns(first, second, rounds):
    """Median seconds of the processor of both, run A B B A."""
    a, b = [], []
    for _ in range(rounds):
        for call, times in ((first, a), (second, b), (second, b), (first, a)):
            times.append(timed(call))
    return median(a), median(b)


class Bench:
    """One model with one batch of noise."""

    def __init__(self, f, shape, classes, batch, spread=False):
        noise = Noise(tuple(sample_seeds(0, batch)))
        self.f, self.batch = f, batch
        self.x, self.cond = noise.normal("start", shape), {"y": torch.arange(batch) % max(classes, 1)}
        if spread:
            self.x = self.x * (0.3 + 2.7 * torch.arange(batch) * 0.618 % 1).view(-1, 1, 1, 1)

    def loop(self, cache, steps):
        """The samples, and the cache's report."""
        times, run = torch.linspace(1, 0, steps + 1, dtype=torch.float64), cache and cache.start(steps)
        x = integrate(self.f, self.f.path.start(self.x, times[0]), times, Euler(), cond=self.cond, tap=run)
        return x, run and run.report()

    def step_cost(self, cache, rounds):
        """Seconds of a full evaluation, and of a skipped one after enough full ones to fill the cache's memory."""
        when = getattr(cache, "policy", cache)
        steps = when.warmup + 3 * when.interval + 1  # the last but one is full, the last is not
        run, t = cache.start(steps), torch.tensor(0.5, dtype=torch.float64)
        taps = [BoundTap(run, Context(step, steps, 0, 1 - step / steps)) for step in range(steps)]
        for tap in taps[:-1]:
            self.f(self.x, t, self.cond, tap=tap)
        return turns(lambda: self.f(self.x, t, self.cond), lambda: self.f(self.x, t, self.cond, tap=taps[-1]), rounds)

    def parts(self, rounds):
        """Seconds of what every evaluation pays outside the blocks."""
        net, t = self.f.net, torch.full((self.batch,), 0.5)
        h = net.x_embedder["proj"](self.x).flatten(2).mT + net.pos_embed
        c = net.t_embedder(t)
        calls = {
            "patches": lambda: net.pos_embed + net.x_embedder["proj"](self.x).flatten(2).mT,
            "time": lambda: net.t_embedder(t * net.spec.time_scale),
            "label": lambda: net.y_embedder(self.cond["y"]) if net.y_embedder is not None else None,
            "final": lambda: net.head(h, c),
        }
        return {name: median(timed(call) for _ in range(4 * rounds)) for name, call in calls.items()}


def drift(a, b):
    return float((a - b).square().mean().sqrt() / b.std())


@torch.no_grad()
def measure(name, f, shape, classes, batch, steps, interval, rounds, loops):
    bench = Bench(f, shape, classes, batch)
    plain, _ = bench.loop(None, steps)
    rows, latency = [], {}
    lite, lam = TaylorSeerLite(interval), TaylorSeerLite(interval, coordinate=Lam(f.path))
    newton = Custom(policy=Interval(interval, warmup=3), predictor=Newton(2), sites=("trunk",))
    caches = {"taylorseer": TaylorSeer(interval), "lite": lite, "lite, lam": lam, "lite, Newton": newton}
    for label, cache in caches.items():
        x, report = bench.loop(cache, steps)
        full, skipped = bench.step_cost(cache, rounds)
        own = []
        for _ in range(loops):
            base, cached = turns(lambda: bench.loop(None, steps), lambda c=cache: bench.loop(c, steps), 1)
            own.append((base, cached))
        latency[label] = median(b / c for b, c in own)
        rows.append({
            "cache": label, "full": report.full, "evaluations": report.evaluations,
            "fraction": report.fraction, "full_ms": 1e3 * full, "skipped_ms": 1e3 * skipped, "c": skipped / full,
            "speedup": latency[label], "ms_per_loop": 1e3 * median(c for _, c in own), "drift": drift(x, plain),
            "memory_mb": report.memory / 2**20,
        })  # fmt: skip
    few = max(1, round(steps / latency["lite, lam"]))
    rows.append({"cache": f"none, {few} steps", "evaluations": few, "drift": drift(bench.loop(None, few)[0], plain)})
    return {
        "model": name, "batch": batch, "steps": steps, "interval": interval, "rows": rows,
        "outside_the_blocks_ms": {k: 1e3 * v for k, v in bench.parts(rounds).items()},
    }  # fmt: skip


GATED = {"fbcache": {}, "teacache": {}, "speca": {"floor": 1e-6, "decay": 1.0}}
ASKING = 0.41  # the share of rows that the thresholds are set for


def gated_dit(depth=12, width=192):
    """A random DiT of 64 tokens whose rows change unlike, on starts of many sizes."""
    torch.manual_seed(0)
    net = DiT(size=16, patch=2, channels=4, classes=10, width=width, depth=depth, heads=3).build()
    for name, weight in net.named_parameters():
        if "adaLN" in name or name == "final_layer.linear.weight":
            torch.nn.init.normal_(weight, std=0.05)
    return Denoiser(net.eval().requires_grad_(False), Flow(), Velocity()), (4, 16, 16), 10


def asking(bench, name, threshold, steps):
    return bench.loop(build("samplers.caches", {"name": name, **GATED[name], "threshold": threshold}), steps)[1]


@torch.no_grad()
def gates(sizes, steps=20, loops=5):
    """Rows per cache and batch size: the share of rows that ask, the speed-up, and 1 / the cost of what is computed."""
    f, shape, classes = gated_dit()
    trial, rows = Bench(f, shape, classes, 16, spread=True), []
    for name, fields in GATED.items():
        low, high = 1e-6, 2.0
        for _ in range(12):
            middle = (low * high) ** 0.5
            low, high = (
                (middle, high) if asking(trial, name, middle, steps).fraction_per_row > ASKING else (low, middle)
            )
        for size in sizes:
            bench = Bench(f, shape, classes, size, spread=True)
            for label, per_batch in (("rows", False), ("batch", True)):
                cache = build("samplers.caches", {"name": name, **fields, "threshold": high, "per_batch": per_batch})
                report = bench.loop(cache, steps)[1]
                loop, plain = partial(bench.loop, cache, steps), partial(bench.loop, None, steps)
                pairs = [turns(plain, loop, 1) for _ in range(loops)]
                share = report.fraction_per_row
                rows.append({"cache": f"{name}, by {label}", "batch": size, "asking": share, "full": report.fraction,
                             "speedup": median(a / b for a, b in pairs), "limit": 1 / share})  # fmt: skip
                print(
                    "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()),
                    flush=True,
                )
    return rows


def table(result):
    columns = ("full", "evaluations", "full_ms", "skipped_ms", "c", "speedup", "drift", "memory_mb")
    lines = [
        f"{result['model']}: batch {result['batch']}, {result['steps']} Euler steps, interval {result['interval']}"
    ]
    lines.append("  " + f"{'cache':<16}" + "".join(f"{c:>12}" for c in columns))
    for row in result["rows"]:
        cells = ("" if row.get(c) is None else f"{row[c]:.4g}" for c in columns)
        lines.append("  " + f"{row['cache']:<16}" + "".join(f"{cell:>12}" for cell in cells))
    parts = ", ".join(f"{k} {v:.3g}" for k, v in result["outside_the_blocks_ms"].items())
    return "\n".join([*lines, f"  outside the blocks, ms: {parts}"])


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", help="run folders, such as the digits teacher's")
    parser.add_argument("--interval", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of the runs' loops (default: 50)")
    parser.add_argument("--random-steps", type=int, default=20, help="of the random DiT-S/2's loops (default: 20)")
    parser.add_argument("--batch-size", type=int, default=250, help="of the runs (default: 250)")
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    parser.add_argument("--loops", type=int, default=5, help="of gates, four in turns each (default: 5)")
    parser.add_argument("--gates", type=int, nargs="+", metavar="BATCH", help="measure gates at these sizes instead")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    with QuietCheck() as check:
        results = gates(args.gates, loops=args.loops) if args.gates else whole_loops(args)
    return int(args.out is not None and not check.write(args.out, {"rows": results}, wall=False))


def whole_loops(args):
    """Measurements of the random network and of each run."""
    results = [measure("DiT-S/2, random", *random_dit(), 1, args.random_steps, args.interval, 4, 1)]
    print(table(results[0]), flush=True)
    for folder in args.runs:
        pipeline = gen.load(folder)
        model = (pipeline.name, pipeline.denoiser, pipeline.shape, pipeline.classes)
        results.append(measure(*model, args.batch_size, args.steps, args.interval, 10, 1))
        print(table(results[-1]), flush=True)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
