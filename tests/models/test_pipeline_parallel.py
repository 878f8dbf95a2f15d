"""Networks of pipelines in parts: families, one by one, on one process and on several."""

import contextlib
import importlib

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.tap import BoundTap, Context
from gen.models.engines.patches import Patches
from tests.models.pipeline_shares import ENGINES, FAMILIES, JOINT, LIVE, loop, network_of, output
from tests.over import over
from tests.pipelines.tiny import relative, tiny
from tests.ranks import spread


def hooks(net):
    """How many of torch's and of diffusers' each module has."""
    modules = net.inner.modules()
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "_diffusers_hook" in vars(m)) for m in modules]


@pytest.mark.slow
@over(name=[name for name in FAMILIES if name not in ("pixart", "flux")])
def test_each_family_in_parts(name):
    check(name)


@over(name=["pixart", "flux"])
def test_synchronous_parts_are_the_network_and_frozen_ones_too(name):
    check(name)


@torch.no_grad()
def check(name):
    net, x, t, cond = network_of(name)
    before, exact = hooks(net), net(x, t, cond)
    ours = Patches(parts=4, warmup=0).prepare(net)
    tap = ours.start_loop(3, None)
    for step in range(3):
        out = ours(x, t, cond, tap=BoundTap(tap, Context(step, 3, 0, 0.5)))
        torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)
    moved = ours(1.5 * x, t, cond, tap=BoundTap(tap, Context(2, 4, 1, 0.5)))  # another stage has nothing stale
    torch.testing.assert_close(moved, net(1.5 * x, t, cond), rtol=1e-4, atol=1e-4)
    stale = loop(Patches(parts=4, warmup=0).prepare(net), x, t, cond)[1]
    assert not torch.equal(stale, net(1.3 * x, t, cond))
    assert hooks(net) == before


def test_refusals():
    for name, fields, said in (
        ("sana", {}, "cannot share out this SanaTransformer2DModel: its attention is linear"),
        ("z_image", {}, "cannot share out this ZImageTransformer2DModel: its rows have text of unlike lengths"),
        ("wan22", {}, "cannot share out this WanTransformer3DModel: its pipeline has two"),
        ("sd3", {"portion": 0.3}, "its text attends to the whole image: leave out the portion"),
    ):
        with pytest.raises(UserError, match=said):
            Patches(parts=2, **fields).prepare(network_of(name)[0])
    flux, *given = network_of("flux")
    ours = Patches(parts=2).prepare(flux)
    dispatch = importlib.import_module("diffusers.models.attention_dispatch")
    for processor in (module.processor for module in flux.inner.modules() if hasattr(module, "processor")):
        processor._attention_backend = dispatch.AttentionBackendName("sage")
    with torch.no_grad(), pytest.raises(UserError, match=r"its attention is of sage; allowed: PyTorch's"):
        ours(*given)
    net, x, t, cond = network_of("pixart")
    pipe = tiny("sd15")
    with gen.accelerate(pipe, engine="packed"), pytest.raises(UserError, match="it is accelerated already"):
        Patches(parts=2).live([pipe.unet])
    processors = importlib.import_module("diffusers.models.attention_processor")
    kept = net.inner.attn_processors
    net.inner.set_attn_processor(processors.XFormersAttnProcessor())
    with pytest.raises(UserError, match="its attention is of XFormersAttnProcessor"):
        Patches(parts=2).prepare(net)
    net.inner.set_attn_processor(kept)
    with torch.no_grad(), pytest.raises(UserError, match="8 tokens do not divide into 3 parts"):
        Patches(parts=3).prepare(net)(x, t, cond)


@pytest.mark.slow
@over(name=["wan22", "sd15", "flux"])
def test_live_pipelines_in_parts(name):
    pipe = tiny(name)
    exact, synchronous = output(pipe, name), Patches(parts=2, synchronous=True)
    for settings in ({}, {"cache": "fora", "sites": ["blocks.*"]}):
        with contextlib.ExitStack() as stack:
            if settings:
                stack.enter_context(gen.accelerate(pipe, **settings))
            alone = output(pipe, name)
        with gen.accelerate(pipe, engine=synchronous, **settings) as live:
            assert relative(output(pipe, name), alone) < 1e-5
            assert "patches (synchronous, 2 parts)" in repr(live)
    with gen.accelerate(pipe, engine=Patches(parts=2, warmup=0)):
        assert 1e-5 < relative(output(pipe, name), exact) < 1
    refused = pytest.raises(UserError, match="each process sees a part of each sample")
    with gen.accelerate(pipe, "magcache", sites=["net"], engine=synchronous), refused:
        output(pipe, name)
    assert torch.equal(output(pipe, name), exact)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_the_parts_of_one_process(tmp_path, count):
    ranks = spread("tests.models.pipeline_shares:everything", count, tmp_path, timeout=400)
    names = [name.removesuffix(" one process") for name in ranks[0] if name.endswith(" one process")]
    assert len(names) == len(FAMILIES) * len(ENGINES) - len(JOINT)
    for name in names:
        for rank in ranks:
            outputs = rank[f"{name} outputs"]
            torch.testing.assert_close(outputs, ranks[0][f"{name} one process"], rtol=1e-4, atol=1e-4, msg=name)
            if f"{name} alone" in ranks[0]:
                torch.testing.assert_close(outputs, ranks[0][f"{name} alone"], rtol=1e-4, atol=1e-4, msg=name)
            if f"{name} sent" in rank:
                sent, foretold = rank[f"{name} sent"].tolist()
                assert sent == foretold, name
    for name in LIVE:
        for rank in ranks:
            assert relative(rank[f"{name}, live"], ranks[0][f"{name}, alone"]) < 1e-5
