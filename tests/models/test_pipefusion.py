"""Patches in a pipeline of stages: exact where synchronous, and elsewhere what the paper says."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.tap import BoundTap, Context, FeatureRecorder
from gen.kernels.sequence_parallel.stages import stage_blocks, stage_bytes
from gen.models.dit import DiT
from gen.models.engines.pipefusion import PipeFusion
from gen.models.layers.attention import Attention
from tests.models.pipefusion_shares import ENGINES, LOOPS, NETS, STEPS, N, pipeline_of
from tests.models.test_families import digits, inputs, random_net
from tests.over import over
from tests.ranks import spread


def sample(pipeline, engine=None, **settings):
    pipeline = pipeline if engine is None else pipeline.prepared(engine)
    return pipeline.sample(N, **{**LOOPS["plain"], **settings}).x


@over(name=NETS)
def test_synchronous_steps_are_the_network(name):
    """A warm-up of all steps, too, and of all but one not: the first evaluation of a branch is always synchronous."""
    pipeline = pipeline_of(name)
    settings = {"guide": "apg"}
    exact = sample(pipeline, **settings)
    for engine in (PipeFusion(parts=2, synchronous=True), PipeFusion(parts=3, patches=4, warmup=STEPS)):
        torch.testing.assert_close(sample(pipeline, engine, **settings), exact, rtol=1e-5, atol=1e-5)
    late = sample(pipeline, PipeFusion(parts=2, warmup=STEPS - 1), **settings)
    assert 1e-6 < (late - exact).norm() / exact.norm() < 0.1
    once, never = (sample(pipeline, PipeFusion(parts=2, warmup=warmup)) for warmup in (1, 0))
    assert torch.equal(once, never)


def reference(patches, warmup):
    """`attend` of one layer, written down from the paper: q, k, v of one patch, or of all in the warm-up."""
    calls, kept = [0], {}

    def attend(qkv):
        step, patch = calls[0] // patches, calls[0] % patches
        q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, heads, T or n, d]
        if step < warmup:
            calls[0] += patches
            kept["k"], kept["v"] = k.clone(), v.clone()
        else:
            calls[0] += 1
            n = qkv.shape[1]
            kept["k"][:, :, patch * n : (patch + 1) * n], kept["v"][:, :, patch * n : (patch + 1) * n] = k, v
        weights = (q @ kept["k"].mT / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ kept["v"]).transpose(1, 2)

    return attend, calls


@over(patches=[1, 2, 4])
def test_stale_patches_are_those_of_the_paper(patches):
    """The network's trunk by hand, patch after patch, with the reference as its attention."""
    pipeline, warmup = pipeline_of("dit"), 2
    ours = sample(pipeline, PipeFusion(parts=2, patches=patches, warmup=warmup))
    net = pipeline.denoiser.net
    attentions = [reference(patches, warmup) for module in net.modules() if isinstance(module, Attention)]
    for module, (attend, _) in zip((m for m in net.modules() if isinstance(m, Attention)), attentions, strict=True):
        module.attend = attend
    plain = type(net).trunk

    def trunk(h, c, tap):
        done = attentions[0][1][0] // patches
        return torch.cat([plain(net, part, c, tap) for part in h.chunk(1 if done < warmup else patches, 1)], 1)

    net.trunk = trunk
    torch.testing.assert_close(ours, sample(pipeline), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_staleness_of_a_frozen_input_is_none():
    net = random_net(digits("pixart"))
    ours, (x, t, cond) = PipeFusion(parts=4).prepare(net), inputs(net)
    loop = ours.start_loop(5, None)
    outs = [ours(x, t, cond, tap=BoundTap(loop, Context(i, 5, 0, 0.5))) for i in range(5)]
    for out in (*outs, ours(x, t, cond)):
        torch.testing.assert_close(out, net(x, t, cond), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_branches_stages_and_loops_do_not_see_each_other():
    net = random_net(digits("dit"))
    ours, (x, t, cond) = PipeFusion(parts=2).prepare(net), inputs(net)
    keys = [(stage, branch) for stage in (0, 1) for branch in ("main", "uncond")]

    def outputs(order):
        loop, found = ours.start_loop(3, None), {}
        for step in range(3):
            for stage, branch in order:
                at = x * (1 + step + 3 * stage + (branch == "uncond"))
                tap = BoundTap(loop, Context(step, 3, stage, 0.5, branch))
                found[step, stage, branch] = ours(at, t, cond, tap=tap)
        return found

    forward = outputs(keys)
    for order in (keys[::-1], *([key] for key in keys)):
        assert all(torch.equal(out, forward[at]) for at, out in outputs(order).items())


def test_staleness_falls_with_the_step_and_with_more_patches():
    """First order in the step; less than DistriFusion's, since the patches before one are fresh."""
    pipeline = pipeline_of("dit")

    def far(steps, engine):
        exact = sample(pipeline, steps=steps)
        return float((sample(pipeline, engine, steps=steps) - exact).norm() / exact.norm())

    assert far(10, PipeFusion(parts=4)) / far(40, PipeFusion(parts=4)) == pytest.approx(4, rel=0.25)
    for parts in (2, 4):
        distrifusion = build("models.engines", {"name": "patches", "parts": parts, "warmup": 0})
        assert far(10, PipeFusion(parts=parts)) < far(10, distrifusion)


def test_stages_share_out_all_blocks_and_send_tokens():
    assert [len(stage_blocks(stage, 3, 8)) for stage in range(3)] == [2, 3, 3]
    assert [i for stage in range(3) for i in stage_blocks(stage, 3, 8)] == [*range(8)]
    h, out = torch.empty(2, 16, 8), torch.empty(2, 1, 8, 8)
    assert [stage_bytes(h, out, stage, 3) for stage in range(3)] == [h.nbytes, h.nbytes, 2 * out.nbytes]


def test_taps_see_whole_values_alone():
    net, record = random_net(digits("dit")), FeatureRecorder()
    x, t, cond = inputs(net)
    PipeFusion(parts=2).prepare(net)(x, t, cond, tap=record)
    assert list(record.features) == ["time", "trunk", "final"]


def test_refusals_and_spec():
    net = random_net(digits("dit"))
    with pytest.raises(UserError, match=r"'pipefusion' needs processes: .* or give parts = 2 to try it in one"):
        PipeFusion().prepare(net)
    with pytest.raises(UserError, match=r"divides the blocks of dit, .* and of pipelines' transformers, not of"):
        PipeFusion(parts=2).prepare(digits("lightnet").build())
    with pytest.raises(UserError, match="4 blocks do not make 5 stages"):
        PipeFusion(parts=5).prepare(DiT.preset("digits").build())
    with pytest.raises(UserError, match="16 tokens do not divide into 3 patches"):
        sample(pipeline_of("dit"), PipeFusion(parts=3))
    with pytest.raises(UserError, match="takes no cache, since each process has other blocks"):
        sample(pipeline_of("dit"), PipeFusion(parts=2), cache="fora")
    ours, (x, t, cond) = PipeFusion(parts=2).prepare(net), inputs(net)
    loop = ours.start_loop(3, None)
    for step in range(2):
        with pytest.raises(UserError, match="passes no gradients on") if step else torch.no_grad():
            ours(x, t, cond, tap=BoundTap(loop, Context(step, 3, 0, 0.5)))
    engine = PipeFusion(2, 8, parts=2)
    assert build("models.engines", spec_of(engine)) == engine
    assert not engine.collective and PipeFusion().collective


@pytest.mark.slow
def test_processes_are_the_stages_of_one_process(tmp_path):
    ranks = spread("tests.models.pipefusion_shares:everything", 4, tmp_path)
    for name in NETS:
        for kind in ENGINES:
            own, depth = torch.stack([rank[f"{name}, {kind} blocks"] for rank in ranks]).unbind(1)
            assert own.sum() == depth[0]
            for loop in LOOPS:
                key = f"{name}, {kind}, {loop}"
                for rank in ranks:
                    assert torch.equal(rank[f"{key} samples"], ranks[0][f"{key} samples"]), key
                torch.testing.assert_close(
                    ranks[0][f"{key} samples"], ranks[0][f"{key} one process"], rtol=1e-5, atol=1e-5, msg=key
                )
            for rank in ranks:
                sent, foretold = rank[f"{name}, {kind}, plain sent"].tolist()
                assert sent == foretold, kind
