"""Methods of restoration by a model that was trained for nothing of the kind, on held-out digits.

python scripts/compare_restoration.py [-n 360] [--folder runs/restoration] [--table restoration.json]

The model is that of the quickstart, without labels. Every method restores the same digits from the same measurements,
five operators with and without noise, at about 50 evaluations of the network, but for D-Flow, whose line search takes
its own number; some also need derivatives. Those that take no noise level get none. Rows that a table has already are
left as they are, so that a second call goes on. FID is against the 360 held-out digits, in the features of
`digits_cnn`; SSIM's window is larger than the digits, so there is none. Seconds are the processor's. A row without a
method is A+ y, which nothing has restored.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import gen
from gen.config.images import to_uint8
from gen.config.spec import Json, build
from gen.config.writing import write_text
from gen.data.digits import Digits
from gen.diffusion.noise import Noise, sample_seeds
from gen.eval.metrics.psnr import PSNR
from gen.eval.reference import Reference
from gen.pipeline import Pipeline
from gen.training.recipes.digits import digits

OPERATORS: dict[str, Json] = {
    "inpainting": {"name": "inpaint"},
    "SR x2": {"name": "pool", "factor": 2},
    "blur": {"name": "blur", "width": 1.0},
    "CT": {"name": "radon", "views": 4},
    "MRI": {"name": "fourier", "acceleration": 2.0},
}
NOISES = (0.1, 0.0)
METHODS: tuple[Json, ...] = (
    {"name": "ddnm", "steps": 50},
    {"name": "ddrm", "steps": 50},
    {"name": "diffpir", "steps": 50},
    {"name": "pigdm", "steps": 50, "variance": 0.5},
    {"name": "dps", "steps": 50, "rate": 0.5},
    {"name": "exact", "steps": 50},
    {"name": "repaint", "steps": 18, "jump": 3, "repeats": 3},
    {"name": "sdedit", "steps": 50},
    {"name": "flow_dps", "steps": 50},
    {"name": "pnp_flow", "steps": 10},
    {"name": "red_diff", "steps": 50},
    {"name": "d_flow", "steps": 3, "iterations": 8},
)


def compare(pipeline: Pipeline, truth: Tensor, method: Json | None, operator: Json, noise: float) -> Json:
    """Return what one method makes of one operator's measurements of digits [n, 1, 8, 8]; None leaves A+ y."""
    on, seeds = build("operators", operator).on(tuple(truth.shape[1:])), sample_seeds(0, len(truth))
    y = on.A(truth) + noise * Noise(tuple(seeds)).normal("measurement", on.measured)
    began, found = time.process_time(), dict[str, Any]()
    if method is None:
        x = on.pinv(y)
    else:
        told = noise if method["name"] in ("ddrm", "diffpir", "pigdm", "dps", "exact") else None
        made = pipeline.restore(y, on, method, noise=told, batch_size=len(truth))
        x, found = made.x, {"nfe": made.nfe, "seconds": time.process_time() - began}
    samples = to_uint8(x)
    record = gen.evaluate(samples, against=Reference.open("digits", "test", "digits_cnn"), metrics=["fid"])
    return {
        **found,
        "psnr": PSNR()(samples, to_uint8(truth)).value,
        "fid": next(one.estimate.value for one in record.metrics if one.column.key == "fid"),
        "residual": float((on.A(x) - y).square().mean().sqrt()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, default=360, help="digits")
    parser.add_argument("--folder", type=Path, default=Path("runs/restoration"), help="of the model")
    parser.add_argument("--table", type=Path, default=Path("restoration.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = gen.load(gen.train(digits(), args.folder / "teacher", quiet=True).folder)
    data = Digits().open("test")
    truth = torch.stack([data[i]["x"] for i in range(min(args.n, len(data)))])
    about: Json = {"date": str(datetime.date.today()), "torch": torch.__version__, "cpu": platform.machine()}
    known: Any = json.loads(args.table.read_text("utf-8")) if args.table.exists() else {**about, "rows": []}
    for noise in NOISES:
        for named, operator in OPERATORS.items():
            for method in (None, *METHODS):
                what: Json = {"method": method, "operator": named, "noise": noise, "digits": len(truth)}
                if any(what.items() <= row.items() for row in known["rows"]):
                    continue
                known["rows"].append(what | compare(pipeline, truth, method, operator, noise))
                print(json.dumps(known["rows"][-1]), flush=True)
                write_text(args.table, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
