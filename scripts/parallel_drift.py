"""What stale and missing keys cost the samples of a model: the drift of the engines that compute a picture in parts.

    python scripts/parallel_drift.py RUN [--steps 8 16 32 64] [-n 64] [--out docs/figures]

All parts are computed in one process. Each engine has one synchronous step; drift is the relative L2 distance of its
samples from those of the network alone, with the same solver, steps and noise. Writes drift.svg and prints a table.

Measured (2026-11-30) on the quickstart's teacher, 2 and 4 parts, in 8 and 64 steps: PipeFusion .018 and .0028, .026 and
.0040; DistriFusion .029 and .0042, .043 and .0068; PCPP with a portion of 0.3 .20 and .22, .35 and .38. PipeFusion
keeps about six tenths of DistriFusion's drift, since the patches before one are fresh.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse

import torch

import gen
from gen.config.writing import write_text
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
from scripts.figures import Panel, figure

PORTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
PARTS = (2, 4)
NAMES = PCPP, DISTRIFUSION, PIPEFUSION = "PCPP", "DistriFusion", "PipeFusion"


def engines(parts):
    """(name, portion or None, engine) of every method."""
    yield DISTRIFUSION, None, Patches(warmup=0, parts=parts)
    yield PIPEFUSION, None, PipeFusion(warmup=1, parts=parts)
    for portion in PORTIONS:
        yield PCPP, portion, Patches(warmup=0, portion=portion, parts=parts)


def drifts(pipeline, steps, n):
    """Measure the drift of every method: {(parts, name, portion, steps): drift}."""
    how, found = {"solver": "euler", "guide": "none"}, {}
    for count in steps:
        exact = pipeline.sample(n, steps=count, **how).x
        for parts in PARTS:
            for name, portion, engine in engines(parts):
                ours = pipeline.prepared(engine).sample(n, steps=count, **how).x
                found[parts, name, portion, count] = float((ours - exact).norm() / exact.norm())
    return found


def drawn(found, steps, at):
    """Return the picture: drift by portion in 2 and in 4 parts, and by steps in 4 parts with a portion of 0.3."""
    panels = []
    for parts in PARTS:
        curves = {PCPP: [(portion, found[parts, PCPP, portion, at]) for portion in PORTIONS]}
        for name in (DISTRIFUSION, PIPEFUSION):
            curves[name] = [(portion, found[parts, name, None, at]) for portion in (0.0, 1.0)]
        panels.append(Panel(f"{parts} parts, {at} steps", "portion of PCPP", "drift", curves, log="y"))
    curves = {
        name: [(count, found[4, name, 0.3 if name == PCPP else None, count]) for count in steps] for name in NAMES
    }
    panels.append(Panel("4 parts, portion 0.3", "steps", "drift", curves, log="y"))
    return figure(panels, "The drift of samples that are computed in parts, by the portion of keys sent and by steps")


def rows(found, steps):
    """Yield the lines of the table."""
    yield "| parts | method | " + " | ".join(f"{count} steps" for count in steps) + " |"
    yield "|---|---|" + "---|" * len(steps)
    for parts in PARTS:
        for name, portion, _ in engines(parts):
            label = name if portion is None else f"{name}, portion {portion:g}"
            cells = (f"{found[parts, name, portion, count]:.2g}" for count in steps)
            yield f"| {parts} | {label} | " + " | ".join(cells) + " |"


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a trained DiT, such as the quickstart's teacher")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64], help="(default: 8 16 32 64)")
    parser.add_argument("-n", "--n", type=int, default=64, help="samples (default: 64)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder (default: docs/figures)")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    found = drifts(gen.load(args.run), args.steps, args.n)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "drift.svg", drawn(found, args.steps, args.steps[len(args.steps) // 2]))
    print("\n".join(rows(found, args.steps)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
