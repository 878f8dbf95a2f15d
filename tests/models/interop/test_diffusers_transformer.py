"""Our solvers, guides and taps on a DiT of diffusers with random weights."""

from __future__ import annotations

import copy
import dataclasses
import importlib

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.net import members
from gen.diffusion.path import DDPM
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import FeatureRecorder, Skip
from gen.models.dit import DiT
from gen.models.interop.diffusers_transformer import DiffusersDiT, denoiser
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler

CLASSES, DEPTH = 10, 3


def theirs(dtype=torch.float64, **changes):
    """A small transformer whose every weight matters; the published start has zero gates."""
    diffusers = importlib.import_module("diffusers")
    make = diffusers.DiTTransformer2DModel
    settings = {"out_channels": 8, "num_layers": DEPTH, "sample_size": 8, "num_embeds_ada_norm": CLASSES}
    model = make(num_attention_heads=2, attention_head_dim=8, in_channels=4, **(settings | changes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype).eval()


def inputs(dtype=torch.float64):
    x = torch.randn(3, 4, 8, 8, dtype=dtype)
    return x, torch.tensor([0.0, 17.5, 999.0]), {"y": torch.tensor([1, 9, CLASSES])}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("out_channels", [4, 8])
@torch.no_grad()
def test_it_equals_the_transformer_itself(dtype, tolerance, out_channels):
    model, (x, t, cond) = theirs(dtype, out_channels=out_channels), inputs(dtype)
    exact = model(x, timestep=t, class_labels=cond["y"]).sample[:, :4]
    ours = DiffusersDiT(model)(x, t, cond)
    assert float((ours - exact).abs().max() / exact.abs().max()) < tolerance


@torch.no_grad()
def test_a_tap_sees_the_sites_of_our_own_dit_and_changes_nothing():
    net, (x, t, cond) = DiffusersDiT(theirs()), inputs()
    record, own = FeatureRecorder(), FeatureRecorder()
    assert torch.equal(net(x, t, cond, tap=record), net(x, t, cond))
    spec = DiT(size=8, channels=4, classes=CLASSES, width=16, depth=DEPTH, heads=2, learn_sigma=True)
    spec.build().double()(x, t.double(), cond, tap=own)
    del own.features["time"]  # theirs embeds t anew in every block
    assert record.features.keys() == own.features.keys()
    assert all(record.features[site].shape == own.features[site].shape for site in own.features)


@torch.no_grad()
def test_a_skipped_block_is_the_identity():
    model, (x, t, cond) = theirs(), inputs()
    skipped = DiffusersDiT(model)(x, t, cond, tap=Skip(("blocks.1",)))
    del model.transformer_blocks[1]
    torch.testing.assert_close(skipped, model(x, timestep=t, class_labels=cond["y"]).sample[:, :4])


@torch.no_grad()
def test_times_and_labels_are_translated():
    """t = 1000 is their timestep 999, t = 1 their 0; the null label is the one after the last."""
    model, (x, _, cond) = theirs(), inputs()
    f = denoiser(model)
    for t, step in ((1000.0, 999), (1.0, 0)):
        told = torch.full((3,), float(step))
        eps = model(x, timestep=told, class_labels=cond["y"]).sample[:, :4]
        torch.testing.assert_close(f(x, torch.tensor(t, dtype=torch.float64), cond).eps, eps)
    assert f.null(cond)["y"].tolist() == [CLASSES] * 3


@torch.no_grad()
def test_a_guided_loop_is_diffusers_own():
    """DDIM with guidance on three of four channels, written out with their scheduler, on its leading timesteps."""
    model, (x, _, cond) = theirs(), inputs()
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(8)
    times = torch.cat([scheduler.timesteps + 1, torch.zeros(1)]).double()
    counted = CountingDenoiser(denoiser(model))
    ours = integrate(CFG(3.0, channels=3)(counted, times), x, times, Euler(), cond=cond)
    null, y = torch.full((3,), CLASSES), cond["y"]
    for t in scheduler.timesteps:
        c, u = (model(x, timestep=t.expand(3), class_labels=label).sample[:, :4] for label in (y, null))
        guided = torch.cat([(u + 3 * (c - u))[:, :3], c[:, 3:]], 1)
        x = scheduler.step(guided, t, x).prev_sample
    assert counted.calls == 16
    assert float((ours - x).abs().max() / x.abs().max()) < 1e-5  # their table is in float32


@pytest.mark.parametrize("solver", ["heun", "dpmpp"])
@torch.no_grad()
def test_solvers_drive_it(solver):
    x, _, cond = inputs()
    times = torch.linspace(999, 0, 5, dtype=torch.float64)
    out = integrate(denoiser(theirs()), x, times, build("samplers.solvers", solver), cond=cond)
    assert out.shape == x.shape


@torch.no_grad()
def test_it_keeps_the_contract_of_a_network():
    net, (x, t, cond) = DiffusersDiT(theirs(torch.float32)), inputs(torch.float32)
    assert members(net).state_shape == (4, 8, 8) and net.null(net.null(cond))["y"].tolist() == [CLASSES] * 3
    other = net.spec.build().eval()
    other.load_state_dict(net.state_dict())
    exact = net(x, t, cond)
    assert torch.equal(other(x, t, cond), exact)
    half = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, cond)
    assert half.dtype == torch.bfloat16 and (half.float() - exact).norm() < 0.1 * exact.norm()


def test_what_it_cannot_do_is_said():
    with pytest.raises(UserError, match="got Linear; allowed: DiTTransformer2DModel"):
        DiffusersDiT(torch.nn.Linear(1, 1))
    net, (x, t, _) = DiffusersDiT(theirs()), inputs()
    with pytest.raises(UserError, match=r"needs cond\['y'\]; given: nothing"):
        net(x, t, {})
    with pytest.raises(UserError, match="no flow map"):
        net(x, t, {"y": t.long()}, s=t)
    assert denoiser(theirs()).path == DDPM()


@pytest.mark.parametrize("name", ["cg_taylor", "fbcache", "fora", "taylorseer", "taylorseer_lite"])
@torch.no_grad()
def test_caches_find_their_sites_in_it(name):
    """They save computations, and where there is nothing to save they change no bit."""
    x, _, cond = inputs()
    f, times, cache = (
        denoiser(theirs()),
        torch.linspace(999, 0, 13, dtype=torch.float64),
        build("samplers.caches", name),
    )
    run = cache.start(12)
    cached = integrate(f, x, times, Euler(), cond=cond, tap=run)
    assert cached.shape == x.shape
    assert run.report().evaluations == 12
    assert any(site.startswith(("blocks.", "trunk", "hidden.", "final")) for site in run.report().sites)
    if hasattr(cache, "interval"):
        assert run.report().hits > 0
        every = dataclasses.replace(cache, interval=1).start(12)
        plain = integrate(f, x, times, Euler(), cond=cond)
        assert torch.equal(integrate(f, x, times, Euler(), cond=cond, tap=every), plain)
