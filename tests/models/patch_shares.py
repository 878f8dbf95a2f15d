"""What each process of tests/models/test_patch_parallel.py computes."""

import torch
import torch.distributed as dist

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.kernels.sequence_parallel import gather_tokens_bytes
from gen.kernels.sequence_parallel.patches import patch_exchange_bytes
from gen.models.engines.patches import Patches
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.models.test_families import digits, random_net

NETS = {"dit": {}, "lightning_dit": {"qk_norm": True}}
STEPS, WARMUP, N = 6, 1, 3
ENGINES = {
    "synchronous": {"synchronous": True},
    "distrifusion": {"warmup": WARMUP},
    "portion 0.3": {"warmup": WARMUP, "portion": 0.3},
    "portion 0": {"warmup": 0, "portion": 0.0},
    "portion 1": {"warmup": WARMUP, "portion": 1.0},
}
CFG = {"name": "cfg", "scale": 3.0}
LOOPS = {
    "plain": {"solver": "euler", "guide": "none"},
    "guided": {"solver": "heun", "guide": CFG},
    "late": {"solver": "euler", "guide": CFG | {"steps": [0.5, 1.0]}},
    "blocks": {"solver": "euler", "guide": CFG, "cache": {"name": "fora", "interval": 2}},
    "trunk": {"solver": "euler", "guide": CFG, "cache": {"name": "uncond", "interval": 2}},
}


def pipeline_of(name, dtype=torch.float32):
    net = random_net(digits(name, **NETS[name]), dtype=dtype)
    return Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=STEPS))


def foretold(net, engine):
    """The bytes of the loop "plain": synchronous steps, stale ones, and the last, after which nobody needs keys."""
    count, rank, spec = dist.get_world_size(), dist.get_rank(), net.spec
    kv = torch.empty(N, 16 // count, 2, spec.heads, spec.width // spec.heads)
    gathered, stale = gather_tokens_bytes(kv, count), patch_exchange_bytes(kv, rank, count, engine.portion)
    sync = STEPS if engine.synchronous else engine.warmup + 1
    exchanges = sync * gathered + max(0, STEPS - sync - 1) * stale
    return STEPS * gather_tokens_bytes(kv[:, :, 0].flatten(2), count) + spec.depth * exchanges


def everything():
    found, count = {}, dist.get_world_size()
    for name in NETS:
        pipeline = pipeline_of(name)
        for kind, fields in ENGINES.items():
            shared = pipeline.prepared(Patches(**fields))
            simulated = pipeline.prepared(Patches(**fields, parts=count))
            net = shared.denoiser.net
            for loop, settings in LOOPS.items():
                key, sent = f"{name}, {kind}, {loop}", net.traffic.sent
                found[f"{key} samples"] = shared.sample(N, **settings).x
                if dist.get_rank() == 0:
                    found[f"{key} one process"] = simulated.sample(N, **settings).x
                if loop == "plain":
                    found[f"{key} sent"] = torch.tensor([net.traffic.sent - sent, foretold(net, shared.engine)])
    return found
