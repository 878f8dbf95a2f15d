"""Whether the best learning rate stays the best when a DiT is made wider, with muP and without: trained on digits.

python scripts/mup_transfer.py --widths 64 256 --out transfer.json

Measured (2026-11-22, a 2.5 GHz Xeon, torch 2.13) with the defaults: depth 2, 200 steps of batch 64, cosine decay, one
seed; mean training loss of the last 50 steps in muP, by learning rate:

            2^-10   2^-9    2^-8    2^-7    2^-6    2^-5
width  64   .7336   .6776   .6229   .5564   .5278   .6398
width 256   .7102   .6550   .6076   .5307   .5134   .6561

The best is the same, and wider is better at all but the largest.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder

from gen.config.spec import override
from gen.config.writing import write_text
from gen.models.dit import DiT
from gen.training.log import read_metrics
from gen.training.optim.adamw import AdamW
from gen.training.recipes.digits import digits
from gen.training.schedules import Cosine
from gen.training.trainer import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256], help="the first is the base")
    parser.add_argument("--powers", type=int, nargs="+", default=[-10, -9, -8, -7, -6, -5], help="of 2: learning rates")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--last", type=int, default=50, help="steps whose training loss is averaged (default: 50)")
    parser.add_argument("--standard", action="store_true", help="the standard parameterisation in place of muP")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the losses here")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    table: dict[int, dict[int, float]] = {}
    for width in args.widths:
        began = time.perf_counter()
        base = DiT.preset("digits", width=args.widths[0], depth=args.depth)
        spec = override(base.wider(width), {"mup_base": None}) if args.standard else base.wider(width)
        table[width] = {power: loss(spec, 2.0**power, args.steps, args.last) for power in args.powers}
        row = "  ".join(f"{value:.4f}" for value in table[width].values())
        best = min(table[width], key=table[width].__getitem__)
        print(f"width {width:4d}: {row}   best 2^{best}   ({time.perf_counter() - began:.0f} s)", flush=True)
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        write_text(args.out, json.dumps({"settings": settings, "loss": table}, indent=1) + "\n")


def loss(model: DiT, lr: float, steps: int, last: int) -> float:
    """The mean training loss of the last steps; data, times and noise are the same for every model and rate."""
    changes = {"ema": (), "validate_every": 0, "sample_every": 0, "save_every": 0, "log_every": 1, "steps": steps}
    run = override(digits(), {"model": model, "optim": AdamW(lr=lr), "schedule": Cosine(warmup=20), **changes})
    with tempfile.TemporaryDirectory() as folder:
        train(run, folder, quiet=True)
        losses = [event["loss"] for event in read_metrics(Path(folder) / "metrics.jsonl")]
    return sum(losses[-last:]) / last


if __name__ == "__main__":
    main()
