"""What each process of tests/models/test_pipeline_parallel.py computes."""

import torch
import torch.distributed as dist

import gen
from gen.diffusion.tap import BoundTap, Context
from gen.kernels.sequence_parallel import gather_tokens_bytes
from gen.models.engines.patches import Patches
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from tests.pipelines.tiny import call, tiny

STEPS = 3
FAMILIES = [
    "cogvideox", "dit", "flux", "flux2", "hunyuan_video", "kontext", "ltx", "pixart", "qwen_image", "sd15", "sd3",
    "wan",
]  # fmt: skip
ENGINES = {"synchronous": {"synchronous": True}, "stale": {"warmup": 0}, "portion": {"warmup": 0, "portion": 0.5}}
LIVE = ["wan22"]
JOINT = {"cogvideox", "flux", "flux2", "hunyuan_video", "kontext", "qwen_image", "sd3"}  # which take no portion


def network_of(name):
    """The network of a tiny pipeline, and its arguments at a time of its own."""
    heard = listen(tiny(name), **call(name))
    net = denoiser_of(heard).net
    t = torch.full((len(heard.latents),), float(heard.timesteps[1]) / (1000 if net.flow else 1))
    return net, heard.latents, t, heard.cond


@torch.no_grad()
def loop(ours, x, t, cond):
    """Outputs of a loop whose state changes."""
    tap = ours.start_loop(STEPS, None)
    return [ours(x * (1 + 0.3 * i), t, cond, tap=BoundTap(tap, Context(i, STEPS, 0, 0.5))) for i in range(STEPS)]


def attention_bytes(net, name, tokens):
    """The bytes of keys and values of a synchronous evaluation, of all layers, and of its output's tokens."""
    count, inner = dist.get_world_size(), net.inner
    config = inner.config
    width = config.num_attention_heads * config.attention_head_dim
    layers = sum(
        len(getattr(inner, blocks, ())) for blocks in ("transformer_blocks", "single_transformer_blocks", "blocks")
    )
    own = torch.empty(2, tokens // count, width)  # two rows
    return 2 * layers * gather_tokens_bytes(own, count), gather_tokens_bytes(own, count)


def output(pipe, name):
    """Latents of a call of a whole pipeline."""
    return pipe(**call(name), return_dict=False)[0]


def live():
    """Calls of live pipelines, each process with the same arguments, and of one alone."""
    found = {}
    for name in LIVE:
        pipe = tiny(name)
        with gen.accelerate(pipe, engine={"name": "patches", "synchronous": True}):
            found[f"{name}, live"] = output(pipe, name)
        if dist.get_rank() == 0:
            found[f"{name}, alone"] = output(pipe, name)
    return found


def everything():
    found, count = live(), dist.get_world_size()
    for name in FAMILIES:
        net, x, t, cond = network_of(name)
        for kind, fields in ENGINES.items():
            if kind == "portion" and name in JOINT:
                continue
            ours = Patches(**fields).prepare(net)
            found[f"{name}, {kind} outputs"] = torch.stack(loop(ours, x, t, cond))
            if dist.get_rank() == 0:
                parts = Patches(**fields, parts=count).prepare(net)
                found[f"{name}, {kind} one process"] = torch.stack(loop(parts, x, t, cond))
                if kind == "synchronous":
                    plain = [net(x * (1 + 0.3 * i), t, cond) for i in range(STEPS)]
                    found[f"{name}, {kind} alone"] = torch.stack(plain)
            if name != "sd15" and kind != "portion":
                tokens = {"kontext": 2}.get(name, 1) * token_count(net, x)
                keys, output = attention_bytes(net, name, tokens)
                sends = STEPS if kind == "synchronous" else STEPS - 1
                found[f"{name}, {kind} sent"] = torch.tensor([ours.traffic.sent, sends * keys + STEPS * output])
    return found


def token_count(net, x):
    """Tokens of the latents: packed ones, or by the patches of the network."""
    if x.ndim == 3:
        return x.shape[1]
    patch = net.inner.config.patch_size
    sizes = patch if isinstance(patch, (tuple, list)) else [1, patch, patch]
    total = x[0].numel() // net.inner.config.in_channels
    return total // (sizes[0] * sizes[1] * sizes[2])
