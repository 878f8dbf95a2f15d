"""How much faster the engines of several processes are than one, beside what the cost model predicts.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/bench_parallel.py [--tokens 256 1024] [--out FILE]

One sample of a DiT of random weights, Euler, no guide (branches: cfg), one thread a process, gloo. The machine's
figures are measured first: operations per second and launches of one process, by networks of two sizes, how much
slower it is beside the others, latency and bandwidth of exchanges of two sizes, and a ring's plain products. Calls
take turns, medians are compared. About two minutes.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import json
import math
import time
from statistics import median

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from gen.config.writing import write_text
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.kernels.sequence_parallel import ring_attention
from gen.kernels.sequence_parallel.collectives import all_gather
from gen.models.dit import DiT
from gen.models.engines.branches import Branches
from gen.models.engines.lib.machine import Machine
from gen.models.engines.lib.parallel_cost import TransformerSize, predicted_speedup
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
from gen.models.engines.sequence import Sequence
from gen.pipeline import Pipeline
from gen.training.distributed import shutdown
from gen.training.run import Sampler

WIDTH, DEPTH, HEADS = 384, 8, 6
ENGINES = {
    "sequence, ulysses": Sequence("ulysses"),
    "sequence, ring": Sequence("ring"),
    "patches, synchronous": Patches(synchronous=True),
    "patches": Patches(warmup=0),
    "patches, portion 0.3": Patches(warmup=0, portion=0.3),
    "pipefusion, 2 patches": PipeFusion(),
    "pipefusion, 8 patches": PipeFusion(patches=8),
    "branches": Branches(),
}


def network(tokens):
    """Return a DiT of so many tokens, whose gates are open."""
    torch.manual_seed(0)
    side = 2 * math.isqrt(tokens)
    net = DiT(size=side, width=WIDTH, depth=DEPTH, heads=HEADS, classes=10).build().eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn_like(weight))
    shape = (4, side, side)
    return Pipeline(Denoiser(net, Flow(), Velocity()), shape, 10, Sampler("euler", steps=6)), TransformerSize(
        tokens, WIDTH, DEPTH, HEADS, state=math.prod(shape), dtype=torch.float32
    )


def seconds_of(call, alone=False):
    """Return the seconds of a call, of the slowest process; alone: on the first, while the others wait."""
    dist.barrier()
    began = time.perf_counter()
    if not alone or dist.get_rank() == 0:
        call()
    took = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    dist.barrier()
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def evaluation_seconds(pipeline, alone):
    """Return the seconds of an evaluation of the network, on one process or on all at once."""
    net, x = pipeline.denoiser.net, torch.randn(1, *pipeline.shape)
    t, cond = torch.full((1,), 0.5), {"y": torch.zeros(1, dtype=torch.int64)}
    with torch.no_grad():
        return median(seconds_of(lambda: net(x, t, cond), alone) for _ in range(7))


def seconds_of_a_score(size, group):
    """Return the seconds of a pair of query and key in a ring of one process beyond those in torch's attention."""
    qkv = torch.randn(1, size.tokens, 3, HEADS, WIDTH // HEADS)
    q, k, v = qkv.transpose(1, 3).unbind(2)
    ring, plain = (
        median(seconds_of(call) for _ in range(7))
        for call in (lambda: ring_attention(qkv, group=group), lambda: scaled_dot_product_attention(q, k, v))
    )
    return max(0.0, ring - plain) / (HEADS * size.tokens**2)


def measured_machine(tokens):
    """Measure one process's share of this machine: two sizes of network, all-gathers of 1 KB and of 4 MB, a ring."""
    networks = [network(tokens // 4), network(tokens)]
    (small, work), (large, more) = (
        (evaluation_seconds(pipeline, alone=True), size.flops(size.tokens, size.tokens)) for pipeline, size in networks
    )
    pipeline, size = networks[1]
    flops = (more - work) / (large - small)
    launch = max(0.0, large - more / flops) / size.products
    contention = max(1.0, evaluation_seconds(pipeline, alone=False) / large)
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    score = seconds_of_a_score(size, groups[dist.get_rank()])
    tensors, repeats = [torch.empty(count) for count in (256, 2**20)], 50

    def exchanges(tensor):
        for _ in range(repeats):
            all_gather(tensor, None, None)

    short, long = (median(seconds_of(lambda x=x: exchanges(x)) for _ in range(5)) / repeats for x in tensors)
    bandwidth = (tensors[1].nbytes - tensors[0].nbytes) * (dist.get_world_size() - 1) / (long - short)
    return Machine(flops, bandwidth, short, launch, overlap=False, contention=contention, score=score)


def compare(tokens, steps, rounds):
    """Yield a row for each engine: predicted and measured speed-up over one process."""
    pipeline, size = network(tokens)
    machine = measured_machine(max(tokens, 256))  # small ones take the time of their launches
    figures = {
        "gflops": machine.flops / 1e9, "gb_per_s": machine.bandwidth / 1e9, "latency_us": machine.latency * 1e6,
        "launch_us": machine.launch * 1e6, "contention": machine.contention, "score_ns": machine.score * 1e9,
    }  # fmt: skip
    prepared = {name: pipeline.prepared(engine) for name, engine in ENGINES.items()}
    seconds = {name: [] for name in ("one process", "one process, guided", *ENGINES)}
    for i in range(rounds + 1):  # the first warms up
        for name, times in seconds.items():
            guide = {"name": "cfg", "scale": 2.0} if name in ("branches", "one process, guided") else "none"
            model = prepared.get(name, pipeline)
            how = {"steps": steps, "guide": guide, "solver": "euler"}
            took = seconds_of(lambda model=model, how=how: model.sample(1, **how), alone=name not in prepared)
            if i:
                times.append(took)
    for name, engine in ENGINES.items():
        guided = name == "branches"
        alone = seconds["one process, guided" if guided else "one process"]
        yield {
            "tokens": tokens, "engine": name, **figures, "seconds": median(seconds[name]),
            "predicted": predicted_speedup(size, machine, steps, dist.get_world_size(), engine, 1 + guided),
            "measured": median(a / b for a, b in zip(alone, seconds[name], strict=True)),
        }  # fmt: skip


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="squares (default: 256 1024)")
    parser.add_argument("--steps", type=int, default=6, help="of each loop (default: 6)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--out", type=Path, help="a JSON file of the rows")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    if started := not dist.is_initialized():
        dist.init_process_group("gloo")
    rows = [row for tokens in args.tokens for row in compare(tokens, args.steps, args.rounds)]
    if dist.get_rank() == 0:
        for row in rows:
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
        if args.out is not None:
            write_text(args.out, json.dumps(rows, indent=1) + "\n")
    if started:
        shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
