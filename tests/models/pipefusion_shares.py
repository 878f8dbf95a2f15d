"""What each process of tests/models/test_pipefusion.py computes."""

import torch
import torch.distributed as dist

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.kernels.sequence_parallel.stages import stage_bytes
from gen.models.engines.pipefusion import PipeFusion
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.models.test_families import digits, random_net

NETS = {"dit": {"depth": 5}, "lightning_dit": {"qk_norm": True}, "pixart": {"qk_norm": "layer"}}
STEPS, N = 6, 3
ENGINES = {"synchronous": {"synchronous": True}, "stale": {"warmup": 2}, "eight patches": {"patches": 8}}
CFG = {"name": "cfg", "scale": 3.0}
LOOPS = {
    "plain": {"solver": "euler", "guide": "none"},
    "guided": {"solver": "heun", "guide": CFG},
    "late": {"solver": "euler", "guide": CFG | {"steps": [0.5, 1.0]}},
}


def pipeline_of(name, dtype=torch.float32):
    net = random_net(digits(name, **NETS[name]), dtype=dtype)
    return Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=STEPS))


def everything():
    found, count, rank = {}, dist.get_world_size(), dist.get_rank()
    for name in NETS:
        pipeline = pipeline_of(name)
        for kind, fields in ENGINES.items():
            shared, simulated = (pipeline.prepared(PipeFusion(**fields, parts=parts)) for parts in (None, count))
            net = shared.denoiser.net
            blocks = torch.tensor([len(net.inner.blocks), len(pipeline.denoiser.net.blocks)])
            found[f"{name}, {kind} blocks"] = blocks
            for loop, settings in LOOPS.items():
                key, sent = f"{name}, {kind}, {loop}", net.traffic.sent
                found[f"{key} samples"] = shared.sample(N, **settings).x
                if rank == 0:
                    found[f"{key} one process"] = simulated.sample(N, **settings).x
                if loop == "plain":
                    h, out = torch.empty(N, 16, net.spec.width), torch.empty(N, 1, 8, 8)
                    foretold = STEPS * stage_bytes(h, out, rank, count)
                    found[f"{key} sent"] = torch.tensor([net.traffic.sent - sent, foretold])
    return found
