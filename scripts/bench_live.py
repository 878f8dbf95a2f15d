"""A cache or an engine on a live pipeline of diffusers: what it saves, and what the hooks cost when they are idle.

    python scripts/bench_live.py [--parts overhead dit sd flux engines] [--rounds 2] [--out FILE]

Networks have random weights: a DiT-S/2 and a FLUX of its width (4 + 8 blocks, 256 image and 32 text tokens), and the
UNet of Stable Diffusion 1.5 at 24 x 24 latents. One thread, processor time, whole calls of the pipeline that return
latents; calls take turns there and back, and medians are compared. c is a skipped evaluation's time over a full one's,
by the report; drift is the relative L2 distance of the latents from the uncached ones. About five minutes.

"engines" times one evaluation of each network in float32 and in bfloat16, with the modules replaced and without, in
turns; its drift is that of the network's output. Two minutes.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import time
from contextlib import contextmanager, suppress
from statistics import median

import torch

import gen
from gen.eval.quiet import QuietCheck
from gen.models.engines.fused import Fused
from gen.models.engines.packed import Packed
from gen.models.interop.pipelines.hooks import SiteHooks
from gen.models.interop.pipelines.network_engine import NetworkEngine
from gen.samplers.caches.custom import Custom
from gen.samplers.caches.fbcache import FBCache
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

PARTS = ("overhead", "dit", "sd", "flux", "engines")


def cache(*sites, order=1, warmup=1):
    """Every third step is computed."""
    return Custom(Interval(3, warmup), Taylor(order), sites=sites)


def autoencoder():
    """A small one, which no call uses but for its factor of 8."""
    import diffusers

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4, **blocks)


def dit():
    import diffusers

    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12, sample_size=32
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    pipe = diffusers.DiTPipeline(net.eval(), vae.eval(), diffusers.DDIMScheduler(clip_sample=False))
    return pipe, {"class_labels": [1], "num_inference_steps": 20, "output_type": "pil"}


def sd():
    import diffusers

    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        unet=net.eval(), vae=autoencoder(), scheduler=scheduler, requires_safety_checker=False, **none
    )
    text = torch.randn(2, 1, 77, 768)
    size = {"height": 192, "width": 192, "num_inference_steps": 12, "output_type": "latent"}
    return pipe, {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], **size}


def flux():
    import diffusers

    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=4, num_single_layers=8, attention_head_dim=64, num_attention_heads=6,
        joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        transformer=net.eval(),
        vae=autoencoder(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **none,
    )
    size = {"height": 256, "width": 256, "num_inference_steps": 20, "output_type": "latent"}
    return pipe, {"prompt_embeds": torch.randn(1, 32, 64), "pooled_prompt_embeds": torch.randn(1, 64), **size}


@contextmanager
def theirs(pipe, config):
    """One of diffusers' own caches."""
    pipe.transformer.enable_cache(config)
    try:
        yield None
    finally:
        pipe.transformer.disable_cache()


def timed(pipe, given):
    """Return the seconds of one call, and the latents of its last step."""
    kept, scheduler = [], pipe.scheduler
    step = scheduler.step

    def keep(*args, **kwargs):
        out = step(*args, **kwargs)
        kept[:] = [out[0] if isinstance(out, tuple) else out.prev_sample]
        return out

    scheduler.step = keep
    try:
        began = time.process_time()
        pipe(**given, generator=torch.Generator().manual_seed(0))
        return time.process_time() - began, kept[0]
    finally:
        del scheduler.step


def compare(name, pipe, given, caches, rounds):
    """Rows of one pipeline: each way to cache it beside none."""
    pipe.set_progress_bar_config(disable=True)
    seconds, latents, reports = {label: [] for label in ("none", *caches)}, {}, {}
    order = ["none", *caches]
    for i in range(rounds):
        for label in order if i % 2 == 0 else reversed(order):
            if label == "none":
                took, latents[label] = timed(pipe, given)
            else:
                with caches[label](pipe) as live:
                    took, latents[label] = timed(pipe, given)
                    reports[label] = None if live is None else live.report
            seconds[label].append(took)
    plain, rows = latents["none"].double(), []
    for label in order:
        report = reports.get(label)
        rows.append({
            "pipeline": name, "cache": label, "seconds": median(seconds[label]),
            "speedup": median(a / b for a, b in zip(seconds["none"], seconds[label], strict=True)),
            "full": report and report.full, "evaluations": report and report.evaluations, "c": report and report.cost,
            "drift": float((latents[label].double() - plain).norm() / plain.norm()),
        })  # fmt: skip
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()), flush=True)
    return rows


def overhead(rounds):
    """The network's step without hooks, and with idle ones at every site, at the trunk's, and at the network's."""
    net = dit()[0].transformer
    given = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([1, 1000])}
    x, rows = torch.randn(2, 4, 32, 32), []

    def step():
        began = time.process_time()
        net(x, **given)
        return time.process_time() - began

    step()
    for sites in (("*",), ("trunk", "hidden.*"), ("net",)):
        ratios, hooked = [], 0
        for _ in range(4 * rounds):
            first = step()
            with SiteHooks(net, sites) as hooks:
                hooked = len(hooks.hooked)
                idle = step() + step()
            ratios.append(idle / (first + step()))
        rows.append({"part": "overhead", "sites": " ".join(sites), "hooks": hooked, "ratio": median(ratios)})
        print(f"idle hooks at {' '.join(sites)}: {hooked} modules, {median(ratios):.4f} of a step without", flush=True)
    return rows


def heard(pipe, given):
    """Return the network of a pipeline and the arguments of its first call."""
    pipe.set_progress_bar_config(disable=True)
    net, calls = getattr(pipe, "transformer", None) or pipe.unet, []

    def keep(module, args, kwargs):
        calls.append((args, kwargs))
        raise InterruptedError

    with net.register_forward_pre_hook(keep, with_kwargs=True), suppress(InterruptedError):
        pipe(**given)
    return net, *calls[0]


def cast(value, dtype):
    """Floats of a tensor, or of what holds tensors, in a dtype."""
    if isinstance(value, dict):
        return {key: cast(one, dtype) for key, one in value.items()}
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def engine(name, net, args, kwargs, built, rounds):
    """The row of one network under one engine."""

    def step():
        began = time.process_time()
        out = net(*args, **kwargs)[0]
        return time.process_time() - began, out

    plain, ratios, seconds = step()[1], [], []
    fast = NetworkEngine(net, built)
    with fast:
        out = step()[1]  # packs
    for _ in range(rounds):
        first = step()[0]
        with fast:
            both = step()[0] + step()[0]
        ratios.append((first + step()[0]) / both)
        seconds.append(both / 2)
    drift = float((out.double() - plain.double()).norm() / plain.double().norm())
    row = {"network": name, "dtype": str(plain.dtype).removeprefix("torch."), "engine": fast.about,
           "seconds": median(seconds), "speedup": median(ratios), "drift": drift}  # fmt: skip
    print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    return row


def engines(rounds):
    """One evaluation of each network under each engine that it has modules for, in both dtypes."""
    rows = []
    for name, make, built in (
        ("DiT-S/2", dit, (Packed(), Fused())),
        ("FLUX, width 384", flux, (Packed(), Fused())),
        ("SD 1.5, 24 x 24", sd, (Packed(),)),
    ):
        net, args, kwargs = heard(*make())
        for dtype in (torch.float32, torch.bfloat16):
            net.to(dtype)
            given = [cast(one, dtype) for one in args], cast(kwargs, dtype)
            turns = rounds if make is sd else 4 * rounds
            rows += [engine(name, net, *given, one, turns) for one in built]
    return rows


def measure(part, rounds):
    """Rows of one part."""
    if part in ("overhead", "engines"):
        return overhead(rounds) if part == "overhead" else engines(rounds)
    if part == "dit":
        caches = {"net": cache("net"), "trunk": cache("trunk"), "raw": cache("blocks.*.raw")}
    elif part == "sd":
        caches = {"net": cache("net"), "trunk": cache("trunk")}
    else:
        import diffusers

        taylor = {"cache_interval": 3, "disable_cache_before_step": 3, "taylor_factors_dtype": torch.float32}
        live = {"taylorseer, ours": cache("blocks.*.raw", warmup=2), "lite, ours": cache("trunk", warmup=2),
                "first block, ours": FBCache(0.2, per_batch=True)}  # fmt: skip
        own = {"taylorseer, diffusers": diffusers.TaylorSeerCacheConfig(**taylor),
               "lite, diffusers": diffusers.TaylorSeerCacheConfig(**taylor, use_lite_mode=True),
               "first block, diffusers": diffusers.FirstBlockCacheConfig(threshold=0.2)}  # fmt: skip
        ways = {name: lambda pipe, c=c: gen.accelerate(pipe, c) for name, c in live.items()}
        ways |= {name: lambda pipe, c=c: theirs(pipe, c) for name, c in own.items()}
        return compare("FLUX, width 384", *flux(), ways, rounds)
    pipe, given = dit() if part == "dit" else sd()
    ways = {f"every third at {name}": lambda pipe, c=c: gen.accelerate(pipe, c) for name, c in caches.items()}
    return compare("DiT-S/2" if part == "dit" else "SD 1.5, 24 x 24", pipe, given, ways, rounds)


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way (default: 2)")
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    with QuietCheck() as check, torch.no_grad():
        rows = [row for part in args.parts for row in measure(part, args.rounds)]
    return int(args.out is not None and not check.write(args.out, {"rows": rows}, wall=False))


if __name__ == "__main__":
    raise SystemExit(main())
