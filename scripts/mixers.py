"""Mixers of tokens on sequences whose least denoising loss is known: benchmarks/results/mixer_laws.json.

python scripts/mixers.py [--only gla mamba] [--laws smooth periodic permuted] [--steps 300] [--seeds 1] [--out FILE]

Every mixer of gen.models.layers.mixers, in a small network of about the same number of weights, learns to denoise each
law of the data `sequences`. Its loss is the mean squared error of x0 over 8 times, on held-out draws that are the same
for all; the exact denoiser's on the same draws is the least one can have. What is in the file is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from gen.config.reading import read_json
from gen.config.spec import Json, build, names
from gen.config.writing import write_json
from gen.data.sequences import Sequences
from gen.diffusion.path import Flow
from gen.models.mixer import Mixed, MixedNet

OUT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "mixer_laws.json"
LAWS = {"smooth": 32, "periodic": 64, "permuted": 32}  # lengths
BATCH, RATE, DRAWS = 64, 3e-3, 512


def spec_of(mixer: str, width: int, length: int) -> Mixed:
    """Return the network of a mixer: two blocks over tokens of one number each."""
    fields: Json = {"mixer": mixer, "size": (1, length), "patch": 1, "channels": 1, "classes": 0, "mlp_ratio": 2.0}
    spec: Mixed = build("models", {"name": "mixer", "width": width, "depth": 2, "time_scale": 1000.0, **fields})
    return spec


def of_size(mixer: str, length: int, numbers: int) -> MixedNet:
    """Return a mixer's network of the width, a multiple of 4, with the nearest number of weights."""
    counts = {width: parameters(spec_of(mixer, width, length).build()) for width in range(16, 44, 4)}
    return spec_of(mixer, min(counts, key=lambda width: abs(counts[width] - numbers)), length).build()


def parameters(net: nn.Module) -> int:
    """Return how many numbers a network trains."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def draw(data: Sequences, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sequences and noise, each [n, 1, 1, length]."""
    x0 = data.world(Flow()).sample(n, generator).float()[:, None, None]
    return x0, torch.randn(x0.shape, generator=generator)


def losses(data: Sequences, net: nn.Module | None) -> float:
    """Return the mean squared error of x0 at 8 middle times; the exact denoiser's without a network."""
    x0, noise = draw(data, DRAWS, torch.Generator().manual_seed(0))
    errors = []
    for t in (torch.arange(8) + 0.5) / 8:
        x = (1 - t) * x0 + t * noise
        if net is None:
            guess = data.world(Flow())(x.double().flatten(1), t.double()).x0.float().view_as(x)
        else:
            with torch.no_grad():
                guess = x - t * net(x, t.expand(len(x)), {})
        errors.append((guess - x0).square().mean())
    return float(torch.stack(errors).mean())


def trained(data: Sequences, mixer: str, numbers: int, steps: int, seed: int) -> Json:
    """Return a row of the table: a mixer trained on a law's velocity from one seed."""
    torch.manual_seed(seed)
    net, generator = of_size(mixer, data.length, numbers), torch.Generator().manual_seed(seed + 1)
    optim = torch.optim.AdamW(net.parameters(), RATE, (0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, RATE, steps)
    many, noises = draw(data, BATCH * steps, generator)
    began = time.process_time()
    for x0, noise in zip(many.split(BATCH), noises.split(BATCH), strict=True):
        t = torch.rand(len(x0), generator=generator)
        at = t[:, None, None, None]
        loss = (net((1 - at) * x0 + at * noise, t, {}) - (noise - x0)).square().mean()
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optim.step()
        schedule.step()
    ms = 1000 * (time.process_time() - began) / steps
    row: Json = {"mixer": mixer, "law": data.law, "seed": seed, "steps": steps, "loss": losses(data, net)}
    return row | {"params": parameters(net), "ms_of_processor": ms}


def linear(data: Sequences) -> float:
    """Return the least loss of a fixed linear map for each time: what no convolution that is the same for all beats."""
    mean, one, total = data.covariances().mean(0), torch.eye(data.length, dtype=torch.float64), 0.0
    for t in (torch.arange(8, dtype=torch.float64) + 0.5) / 8:
        mixed = (1 - t) ** 2 * mean + t**2 * one
        total += float((mean - (1 - t) ** 2 * mean @ torch.linalg.solve(mixed, mean)).trace()) / data.length / 8
    return total


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=names("models.layers.mixers"), help="mixers (default: all)")
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=LAWS, help="(default: all)")
    parser.add_argument("--steps", type=int, default=300, help=f"of batch {BATCH} (default: 300)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--out", type=Path, default=OUT, help="the results, added to (default: the docs')")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    found: Json = read_json(args.out) if args.out.exists() else {"rows": [], "laws": {}}
    for seed, law, mixer in itertools.product(range(args.seeds), args.laws, args.only):
        data = Sequences(law, LAWS[law])
        key = {"mixer": mixer, "law": law, "seed": seed, "steps": args.steps}
        if any(key.items() <= row.items() for row in found["rows"]):
            continue
        numbers = parameters(spec_of("attention", 32, data.length).build())
        found["laws"][law] = {"length": data.length, "least": losses(data, None), "linear": linear(data)}
        found["rows"].append(trained(data, mixer, numbers, args.steps, seed))
        found |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "torch": torch.__version__}
        found |= {"cpu": platform.processor() or platform.machine(), "batch": BATCH, "lr": RATE, "draws": DRAWS}
        write_json(args.out, found)
        print(found["rows"][-1], flush=True)


if __name__ == "__main__":
    main()
