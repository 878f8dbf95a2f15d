"""What each process of tests/models/test_row_parallel.py computes."""

import torch
import torch.distributed as dist
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.kernels.sequence_parallel.patches import edge_bytes, patch_exchange_bytes
from gen.models.engines.patches import Patches
from gen.models.interop.pipelines.prompted import load_diffusers
from gen.models.layers.conv import PixelAttention
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.models.test_families import digits, random_net
from tests.pipelines.tiny import with_text_encoder

STEPS, WARMUP, N = 4, 1, 2
NETS = {  # of 16 rows, so that four parts still have two at the coarser level
    "unet": {"resampling": "conv", "scale_shift": False},
    "song_unet": {"filter": (1.0, 3.0, 3.0, 1.0), "attention": (8,)},
    "edm2": {"attention": (8,)},
}
ENGINES = {
    "synchronous": {"synchronous": True},
    "distrifusion": {"warmup": WARMUP},
    "portion 0.3": {"warmup": WARMUP, "portion": 0.3},
}
CFG = {"name": "cfg", "scale": 3.0}
LOOPS = {
    "plain": {"solver": "euler", "guide": "none"},
    "guided": {
        "solver": "heun",
        "guide": CFG | {"steps": [0.3, 1.0]},
        "cache": {"name": "fora", "sites": ["blocks.*"]},
    },
}


def pipeline_of(name, dtype=torch.float32, **changes):
    net = random_net(digits(name, **{"size": 16, **NETS[name], **changes}), dtype=dtype)
    return Pipeline(Denoiser(net, Flow(), Velocity()), (1, 16, 16), 10, Sampler("euler", steps=STEPS))


def stable_diffusion():
    """A pipeline and the settings of a loop, without guidance."""
    loaded = load_diffusers(with_text_encoder("sd15"), height=32, width=16).pipeline
    cond = loaded.encode_prompts(["a red fox"] * N)
    return loaded, {"cond": cond, "steps": STEPS, "solver": "euler", "guide": "none", "noise": noise(loaded)}


LABELS = torch.zeros(N, dtype=torch.int64)


def noise(pipeline):
    return torch.randn(N, *pipeline.state_shape, generator=torch.Generator().manual_seed(5))


def foretold(plain, cond, fields):
    """The bytes of a loop: of what convolutions, norms and attention of the network alone are given, and its output."""
    net, engine = plain.denoiser.net, Patches(**fields)
    count, rank, sent, handles = dist.get_world_size(), dist.get_rank(), {"sync": 0, "stale": 0}, []

    def add(size):
        for kind in sent:
            sent[kind] += size

    def conv(module, args):
        (kernel, _), (stride, _), (padding, _), h = module.kernel_size, module.stride, module.padding, args[0]
        rows = torch.empty(len(h), h.shape[2] // count, h.shape[1], h.shape[3])
        if kernel > 1 and module is not first:
            add(edge_bytes(rows, rank, count, padding, 1 if stride == 1 else 0))

    def norm(module, args):
        add((count - 1) * 2 * len(args[0]) * module.num_groups * 4)

    def attend(pixels, width):
        kv = torch.empty(N, pixels // count, 2, 1, width)
        sent["sync"] += patch_exchange_bytes(kv, rank, count)
        sent["stale"] += patch_exchange_bytes(kv, rank, count, engine.portion)

    def pixels(module, args):
        attend(args[0].shape[2] * args[0].shape[3], args[0].shape[1])

    def theirs(module, args, kwargs):
        if kwargs.get("encoder_hidden_states") is None:
            attend(*args[0].shape[1:])

    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(conv))
        elif isinstance(module, nn.GroupNorm):
            handles.append(module.register_forward_pre_hook(norm))
        elif isinstance(module, PixelAttention):
            handles.append(module.register_forward_pre_hook(pixels))
        elif hasattr(module, "to_q"):
            handles.append(module.register_forward_pre_hook(theirs, with_kwargs=True))
    out = net(noise(plain), torch.ones(N), cond)
    for handle in handles:
        handle.remove()
    synchronous = STEPS if engine.synchronous else engine.warmup + 1
    stale = max(0, STEPS - synchronous - 1)  # after the last nobody needs any
    return synchronous * sent["sync"] + stale * sent["stale"] + STEPS * (count - 1) * out.nbytes // count


def compare(plain, fields, settings):
    """Samples of all processes and of one, and what was sent."""
    shared, sent = plain.prepared(Patches(**fields)), 0
    out = {"samples": shared.sample(N, **settings).x}
    sent = shared.denoiser.net.traffic.sent
    if dist.get_rank() == 0:
        parts = dist.get_world_size()
        out["one process"] = plain.prepared(Patches(**fields, parts=parts)).sample(N, **settings).x
    return out, sent


@torch.no_grad()
def everything():
    found = {}
    for kind, fields in ENGINES.items():
        for name in NETS:
            plain = pipeline_of(name)
            for loop, settings in LOOPS.items() if kind == "distrifusion" else [("plain", LOOPS["plain"])]:
                out, sent = compare(plain, fields, settings)
                found |= {f"{name}, {kind}, {loop} {key}": value for key, value in out.items()}
                if name == "unet" and loop == "plain":
                    found[f"{name}, {kind} sent"] = torch.tensor([sent, foretold(plain, {"y": LABELS}, fields)])
        loaded, settings = stable_diffusion()
        out, sent = compare(loaded, fields, settings)
        found |= {f"sd15, {kind}, plain {key}": value for key, value in out.items()}
        found[f"sd15, {kind} sent"] = torch.tensor([sent, foretold(loaded, settings["cond"], fields)])
    return found


@torch.no_grad()
def halves():
    """Rows within each half, which computes a branch, beside the rows of one half in one process."""
    plain = pipeline_of("unet")
    shared = plain.prepared({"name": "branches", "within": {"name": "patches", "warmup": 0}})
    alone = plain.prepared(Patches(parts=2, warmup=0))
    settings = {"solver": "euler", "guide": CFG}
    return {"samples": shared.sample(N, **settings).x, "alone": alone.sample(N, **settings).x}
