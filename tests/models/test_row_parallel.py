"""U-Nets by rows on several processes: exact where synchronous, and elsewhere what the published methods say."""

import importlib

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.tap import BoundTap, Context, FeatureRecorder
from gen.models.engines.patches import Patches
from gen.models.interop.pipelines.prompted import load_diffusers
from tests.models.row_shares import CFG, ENGINES, LOOPS, NETS, STEPS, N, noise, pipeline_of, stable_diffusion
from tests.models.test_families import digits, inputs, random_net
from tests.over import over
from tests.pipelines.tiny import relative, with_text_encoder
from tests.ranks import spread

EXACT = [
    ("unet", {}),
    ("unet", {"resampling": "conv"}),
    ("unet", {"resampling": "conv_same", "scale_shift": False, "learn_sigma": True}),
    ("unet", {"multipliers": (1, 1, 1), "groups": 4, "cond_channels": 1, "qkv_order": "heads"}),
    ("song_unet", {}),
    ("song_unet", {"filter": (1.0, 3.0, 3.0, 1.0), "waves": "random", "noise_multiplier": 2}),
    ("edm2", {}),
]


def sample(pipeline, engine=None, **settings):
    pipeline = pipeline if engine is None else pipeline.prepared(engine)
    return pipeline.sample(N, **{**LOOPS["plain"], **settings}).x


@torch.no_grad()
@over(case=EXACT)
def test_synchronous_rows_are_the_network(case):
    name, fields = case
    net = random_net(digits(name, size=16, **fields))
    x, t, cond = inputs(net)
    cond |= {"image": x.flip(0)} if fields.get("cond_channels") else {}
    exact = net(x, t, cond)
    for parts in (2, 4):
        ours = Patches(parts=parts, synchronous=True).prepare(net)
        torch.testing.assert_close(ours(x, t, cond), exact, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_staleness_of_a_frozen_input_is_none():
    """To the bit, norms too; also where a cache leaves out some operations at every other step, and not the rest."""
    net = random_net(digits("unet", size=16))
    ours, (x, t, cond) = Patches(parts=4, warmup=0).prepare(net), inputs(net)
    fresh = ours(x, t, cond)
    torch.testing.assert_close(fresh, net(x, t, cond), rtol=1e-10, atol=1e-12)
    for sites in (None, ["blocks.1", "blocks.5"], ["blocks.*.attn"], ["middle", "encoder.2"]):
        session = None if sites is None else build("samplers.caches", "fora", interval=2, sites=sites).start(6)
        loop = ours.start_loop(6, session)
        for step in range(6):
            assert torch.equal(ours(x, t, cond, tap=BoundTap(loop, Context(step, 6, 0, 0.5))), fresh), sites


@torch.no_grad()
def test_taps_see_rows_below_the_first_layer():
    net = random_net(digits("unet", size=16))
    ours, theirs, (x, t, cond) = FeatureRecorder(), FeatureRecorder(), inputs(net)
    Patches(parts=2).prepare(net)(x, t, cond, tap=ours)
    net(x, t, cond, tap=theirs)
    assert list(ours.features) == list(theirs.features)
    for site, whole in theirs.features.items():
        torch.testing.assert_close(ours.features[site], whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loop", ["plain", pytest.param("guided", marks=pytest.mark.slow)])
@over(name=NETS)
def test_synchronous_loops_guides_and_caches_are_those_of_the_network(name, loop):
    pipeline = pipeline_of(name)
    exact = sample(pipeline, **LOOPS[loop])
    ours = sample(pipeline, Patches(parts=2, synchronous=True), **LOOPS[loop])
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(pipeline, Patches(parts=2, warmup=STEPS - 1), **LOOPS[loop]), ours)
    far = sample(pipeline, Patches(parts=2, warmup=0), **LOOPS[loop]) - exact
    assert 1e-4 < far.norm() / exact.norm() < 1


def test_a_portion_of_one_in_two_parts_is_distrifusion():
    pipeline = pipeline_of("unet")
    whole = sample(pipeline, Patches(parts=2, warmup=1))
    assert torch.equal(sample(pipeline, Patches(parts=2, warmup=1, portion=1.0)), whole)
    assert not torch.equal(sample(pipeline, Patches(parts=2, warmup=1, portion=0.5)), whole)


@pytest.mark.slow
def test_staleness_costs_half_as_much_at_twice_the_steps():
    pipeline = pipeline_of("unet")

    def far(steps):
        exact = sample(pipeline, steps=steps)
        return (sample(pipeline, Patches(parts=4, warmup=0), steps=steps) - exact).norm() / exact.norm()

    assert far(10) / far(20) == pytest.approx(2, rel=0.25)


@pytest.mark.slow
@torch.no_grad()
def test_a_pipeline_s_own_unet_is_used_as_it_is():
    loaded, settings = stable_diffusion()
    exact = loaded.sample(N, **settings).x
    unet = loaded.denoiser.net.inner
    for engine in (Patches(parts=2, synchronous=True), Patches(parts=4, warmup=STEPS)):
        shared = loaded.prepared(engine)
        assert shared.denoiser.net.inner.inner is unet
        assert relative(shared.sample(N, **settings).x, exact) < 1e-5
    guided = {**settings, "guide": CFG, "cache": {"name": "taylorseer", "sites": ["blocks.*"]}}
    ours = loaded.prepared(Patches(parts=2, synchronous=True)).sample(N, **guided).x
    assert relative(ours, loaded.sample(N, **guided).x) < 1e-5
    deep = {**settings, "cache": {"name": "fora", "interval": 2, "sites": ["deep.1"]}}
    ours = loaded.prepared(Patches(parts=2, synchronous=True)).sample(N, **deep).x
    assert relative(ours, loaded.sample(N, **deep).x) < 1e-5
    far = loaded.prepared(Patches(parts=2, warmup=0)).sample(N, **settings).x - exact
    assert 1e-4 < far.norm() / exact.norm() < 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert not any("_diffusers_hook" in vars(module) for module in unet.modules())
    assert torch.equal(loaded.sample(N, **settings).x, exact)


@pytest.mark.slow
def test_prompts_take_an_engine():
    loaded = load_diffusers(with_text_encoder("sd15"), height=32, width=16)
    how = {"steps": 2, "decode": False}
    ours = loaded.sample("a red fox", engine={"name": "patches", "parts": 2, "synchronous": True}, **how)
    assert relative(ours.x, loaded.sample("a red fox", **how).x) < 1e-5
    assert ours.engine == "patches (synchronous, 2 parts)"


@pytest.mark.slow
@torch.no_grad()
def test_staleness_of_a_frozen_input_is_none_in_a_pipeline():
    loaded, settings = stable_diffusion()
    net, x, t = loaded.denoiser.net, noise(loaded), torch.full((N,), 500.0)
    ours = Patches(parts=4, warmup=0).prepare(net)
    loop, fresh = ours.start_loop(4, None), ours(x, t, settings["cond"])
    for step in range(4):
        tap = BoundTap(loop, Context(step, 4, 0, 0.5))
        assert torch.equal(ours(x, t, settings["cond"], tap=tap), fresh)
    torch.testing.assert_close(fresh, net(x, t, settings["cond"]), rtol=1e-5, atol=1e-5)


def test_refusals():
    for name, fields, parts, said in (
        ("unet", {}, 3, "8 rows do not divide into 3 parts that can be halved 1 times"),
        ("unet", {}, 8, "8 rows do not divide into 8 parts that can be halved 1 times"),
        ("song_unet", {"residual": True}, 2, "song_unet with residual, as NCSN"),
        ("lightnet", {}, 2, "shares out dit, lightning_dit, unet, song_unet, edm2 and .* not a LightNetNet"),
    ):
        with pytest.raises(UserError, match=said):
            Patches(parts=parts).prepare(digits(name, **fields).build())
    net = random_net(digits("unet"))
    x, t, cond = inputs(net)
    with pytest.raises(UserError, match="passes no gradients on"):
        Patches(parts=2).prepare(net)(x, t, cond)


@pytest.mark.slow
def test_refusals_of_pipelines():
    loaded, settings = stable_diffusion()
    net = loaded.denoiser.net
    with pytest.raises(UserError, match="16 rows do not divide into 3 parts"):
        Patches(parts=3).prepare(net)
    net.constants["mid_block_additional_residual"] = torch.zeros(1)
    with torch.no_grad(), pytest.raises(UserError, match="mid_block_additional_residual are of the whole picture"):
        Patches(parts=2).prepare(net)(noise(loaded), torch.ones(N), settings["cond"])
    del net.constants["mid_block_additional_residual"]
    net.inner.set_attn_processor(importlib.import_module("diffusers.models.attention_processor").AttnProcessor())
    with pytest.raises(UserError, match="its attention is of AttnProcessor; known are AttnProcessor2_0"):
        Patches(parts=2).prepare(net)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_the_parts_of_one_process(tmp_path, count):
    ranks = spread("tests.models.row_shares:everything", count, tmp_path, timeout=400)
    names = [name.removesuffix(" one process") for name in ranks[0] if name.endswith(" one process")]
    assert len(names) == len(ENGINES) * (len(NETS) + 1) + len(NETS)
    for name in names:
        for rank in ranks:
            assert torch.equal(rank[f"{name} samples"], ranks[0][f"{name} samples"]), name
        torch.testing.assert_close(
            ranks[0][f"{name} samples"], ranks[0][f"{name} one process"], rtol=1e-4, atol=1e-4, msg=name
        )
    for rank in ranks:
        for kind in ENGINES:
            for name in ("unet", "sd15"):
                sent, foretold = rank[f"{name}, {kind} sent"].tolist()
                assert sent == foretold, f"{name}, {kind}"


@pytest.mark.slow
def test_rows_within_two_halves_are_the_rows_of_one_process(tmp_path):
    ranks = spread("tests.models.row_shares:halves", 4, tmp_path)
    for rank in ranks:
        torch.testing.assert_close(rank["samples"], ranks[0]["alone"], rtol=1e-4, atol=1e-4)
