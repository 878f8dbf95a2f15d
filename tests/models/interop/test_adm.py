"""guided-diffusion's U-Nets: read off their files exactly, and sampled as their scripts do."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import gen
from gen.config.errors import UserError
from gen.diffusion.composition import compose
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.diffusion.sampling import integrate
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.unet import UNet

SMALL = UNet(
    size=8, channels=3, classes=5, width=32, multipliers=(1.0, 2.0), blocks=2, attention=(4,), heads=2,
    learn_sigma=True, qkv_order="heads",
)  # fmt: skip
SPEC = {"name": "adm", "size": 8, "heads": 2}
VARIANTS = {
    "published": ({}, {}),
    "new-order": ({"qkv_order": "qkv"}, {"qkv_order": "qkv"}),
    "conv": ({"resampling": "conv"}, {}),
    "no-scale-shift": ({"scale_shift": False, "resampling": "conv", "learn_sigma": False, "classes": 0}, {}),
    "three-levels": ({"multipliers": (0.5, 1.0, 2.0), "width": 64, "blocks": 1, "attention": (4, 2)}, {}),
    "head-width": ({"heads": 0, "head_width": 16}, {"heads": None, "head_width": 16}),
}


def weights(spec, seed=0):
    torch.manual_seed(seed)
    return {k: 0.15 * torch.randn_like(v) for k, v in spec.build().state_dict().items()}


def theirs(state, x, t, y, *, width, heads, head_width, new_order):
    """UNetModel's forward pass, read off the names of a state dict: all output channels."""
    w = {name: value.double() for name, value in state.items()}

    def layer(name, h):
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        if weight.ndim == 1:
            return F.group_norm(h, 32, weight, bias, 1e-5)
        if weight.ndim == 2:
            return F.linear(h, weight, bias)
        if weight.ndim == 3:
            return F.conv1d(h, weight, bias)
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    def resblock(name, h, move):
        a = move(F.silu(layer(f"{name}.in_layers.0", h)))
        a, e = layer(f"{name}.in_layers.2", a), layer(f"{name}.emb_layers.1", F.silu(emb))[..., None, None]
        if e.shape[1] == 2 * a.shape[1]:
            scale, shift = e.chunk(2, 1)
            a = layer(f"{name}.out_layers.0", a) * (1 + scale) + shift
        else:
            a = layer(f"{name}.out_layers.0", a + e)
        a = layer(f"{name}.out_layers.3", F.silu(a))
        short = f"{name}.skip_connection"
        return a + (layer(short, move(h)) if f"{short}.weight" in w else move(h))

    def attention(name, h):
        b, c = h.shape[:2]
        n = heads or c // head_width
        qkv = layer(f"{name}.qkv", layer(f"{name}.norm", h).flatten(2))
        if new_order:
            q, k, v = (part.reshape(b * n, c // n, -1) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(b * n, 3 * c // n, -1).split(c // n, 1)
        scale = 1 / math.sqrt(math.sqrt(c // n))
        a = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(-1)
        return h + layer(f"{name}.proj_out", torch.einsum("bts,bcs->bct", a, v).reshape(b, c, -1)).reshape(h.shape)

    def keep(h):
        return h

    def double(h):
        return F.interpolate(h, scale_factor=2, mode="nearest")

    def stage(name, h, move):
        count = 1 + max(int(m[1]) for key in w if (m := re.match(rf"{re.escape(name)}\.(\d+)\.", key)))
        for j in range(count):
            part = f"{name}.{j}"
            if f"{part}.in_layers.0.weight" in w:
                h = resblock(part, h, move if j == (count - 1 if name.startswith("out") else 0) and move else keep)
            elif f"{part}.qkv.weight" in w:
                h = attention(part, h)
            elif f"{part}.op.weight" in w:
                h = F.conv2d(h, w[f"{part}.op.weight"], w[f"{part}.op.bias"], stride=2, padding=1)
            elif f"{part}.conv.weight" in w:
                h = layer(f"{part}.conv", double(h))
            else:
                h = layer(part, h)
        return h

    half = width // 2
    angle = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
    emb = layer("time_embed.0", torch.cat([angle.cos(), angle.sin()], 1))
    emb = layer("time_embed.2", F.silu(emb))
    if "label_emb.weight" in w:
        emb = emb + w["label_emb.weight"][y]
    ups = [
        n
        for n in range(99)
        if any(f"output_blocks.{n}.{j}.{k}.weight" in w for j in (1, 2) for k in ("in_layers.0", "conv"))
    ]
    inner = ups[0] + 1
    h, kept = x.double(), []
    for k in range(sum(f"input_blocks.{n}.0." in " ".join(w) for n in range(99))):
        down = k > 0 and k % inner == 0
        h = stage(f"input_blocks.{k}", h, (lambda h: F.avg_pool2d(h, 2)) if down else None)
        kept.append(h)
    h = stage("middle_block", h, None)
    for k in range(len(kept)):
        h = stage(f"output_blocks.{k}", torch.cat([h, kept.pop()], 1), double if k in ups else None)
    return layer("out.2", F.silu(layer("out.0", h)))


def imported(tmp_path, spec, given, **more):
    torch.save(weights(spec), tmp_path / "a.pt")
    done = import_checkpoint(tmp_path / "a.pt", {**SPEC, **given, **more}, out=tmp_path / "a")
    return done, gen.load(tmp_path / "a")


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_an_imported_file_computes_what_theirs_does(tmp_path, name):
    changes, given = VARIANTS[name]
    spec = replace(SMALL, **changes)
    done, pipeline = imported(tmp_path, spec, given)
    assert done.run.model == spec and (done.run.path, done.run.parameterisation) == (DDPM(), Eps())
    g = torch.Generator().manual_seed(1)
    x, t, y = torch.randn(3, 3, 8, 8, generator=g), torch.tensor([0, 499, 999]), torch.tensor([0, 3, 4])
    state = weights(spec)
    whole = theirs(
        state, x, t, y, width=spec.width, heads=spec.heads, head_width=spec.head_width,
        new_order=spec.qkv_order == "qkv",
    )  # fmt: skip
    net = pipeline.denoiser.net.double()
    ours = net(x.double(), t.double(), {"y": y} if spec.classes else {})
    torch.testing.assert_close(ours, whole[:, :3], rtol=1e-9, atol=1e-9)
    names = " ".join(state)
    assert ("input_blocks.3.0.op.weight" in names and "output_blocks.2.2.conv.weight" in names) == (
        spec.resampling == "conv"
    )


@pytest.mark.parametrize("preset", [name for name in UNet.presets if name.startswith("ADM")])
def test_published_files_say_what_they_are(monkeypatch, preset):
    """By their sizes alone, without a word beside them."""
    from gen.models.interop.public.adm import ADMWeights
    from gen.models.interop.weights import Weights

    spec = UNet.preset(preset)
    with torch.device("meta"):
        state = spec.build().state_dict()
    given = Weights(state, "bare", {})
    assert ADMWeights().claims(given)
    run = ADMWeights().read(given, None).run
    assert run.model == replace(spec, dropout=0.0)
    assert run.path == DDPM("cosine" if preset == "ADM-64" else "linear")
    assert ADMWeights().read(given, preset).run.model == run.model


def betas(schedule, n, spacing):
    """Tables of a respaced diffusion: timesteps, cumulative products and betas, float64."""
    if schedule == "cosine":
        s = torch.arange(1001, dtype=torch.float64) / 1000
        bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        all_betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        all_betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - all_betas, 0)
    kept = [round(i * 999 / (n - 1)) for i in range(n)] if spacing == "250" else list(range(0, 1000, 1000 // n))
    bars = bar[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    return kept, bars, before, 1 - bars / before


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), [("ddpm", "linear"), ("ddpm", "cosine"), ("ddim", "cosine")])
@torch.no_grad()
def test_it_is_sampled_as_their_scripts_do(tmp_path, sampler, schedule):
    """p_sample_loop with learned variances, or ddim_sample_loop, both with the image clipped."""
    _, pipeline = imported(tmp_path, SMALL, {}, sampler=sampler, schedule=schedule)
    assert pipeline.sampler.steps == {"ddpm": 250, "ddim": 25}[sampler]
    n, noise, y = 10, Noise((0, 1)), torch.tensor([1, 4])
    kept, bars, before, beta = betas(schedule, n, "250" if sampler == "ddpm" else "ddim")
    f, how = pipeline.denoiser, pipeline.plan(steps=n)
    f.net.double()
    unit = noise.normal("start", (3, 8, 8)).double()
    times = how.grid.times(f.path, n)
    loop = compose(f, times, how.solver, how.guide, {"y": y}, unit)
    ours = integrate(loop.f, f.path.start(unit, times[0]), loop.grid, how.solver, cond={"y": y}, noise=noise)
    x = unit * (1 - bars[-1]).sqrt()
    for i in reversed(range(n)):
        t = torch.full((2,), kept[i])
        out = theirs(weights(SMALL), x, t, y, width=32, heads=2, head_width=64, new_order=False)
        eps, v = out.chunk(2, 1)
        clean = ((x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()).clamp(-1, 1)
        if sampler == "ddim":
            eps = (x - bars[i].sqrt() * clean) / (1 - bars[i]).sqrt()
            x = before[i].sqrt() * clean + (1 - before[i]).sqrt() * eps
            continue
        small = beta[i] * (1 - before[i]) / (1 - bars[i])
        x = (
            before[i].sqrt() * beta[i] / (1 - bars[i]) * clean
            + (1 - beta[i]).sqrt() * (1 - before[i]) / (1 - bars[i]) * x
        )
        if i:
            log = (v + 1) / 2 * beta[i].log() + (1 - v) / 2 * small.log()
            x = x + (log / 2).exp() * noise.normal(n - 1 - i, (3, 8, 8)).double()
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_what_is_no_denoiser_and_what_must_be_said_is_one_line(tmp_path):
    def read(state, spec="adm"):
        torch.save(state, tmp_path / "a.pt")
        import_checkpoint(tmp_path / "a.pt", spec, out=tmp_path / "a")

    with pytest.raises(UserError, match="size of the images cannot be read off the weights"):
        read(weights(SMALL))
    with pytest.raises(UserError, match="number of heads cannot be read off"):
        read(weights(SMALL), {"name": "adm", "size": 8})
    with pytest.raises(UserError, match="an upsampler"):
        read(weights(replace(SMALL, channels=6, learn_sigma=False)), SPEC)
    assert not (tmp_path / "a").exists()
