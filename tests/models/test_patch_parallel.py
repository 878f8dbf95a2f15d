"""Patches on several processes: exact where synchronous, and elsewhere what the published methods say."""

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.tap import BoundTap, Context
from gen.kernels.sequence_parallel.patches import patch_exchange_bytes, patch_window
from gen.models.dit import DiT
from gen.models.engines.patches import Patches
from gen.models.layers.attention import Attention
from tests.models.patch_shares import ENGINES, LOOPS, NETS, STEPS, N, pipeline_of
from tests.models.test_families import digits, inputs, random_net
from tests.ranks import spread


def sample(pipeline, engine=None, **settings):
    pipeline = pipeline if engine is None else pipeline.prepared(engine)
    return pipeline.sample(N, **{**LOOPS["plain"], **settings}).x


@pytest.mark.parametrize("guide", ["none", "cfg", "apg", "rescale", "renorm"])
@pytest.mark.parametrize("name", NETS)
def test_synchronous_patches_are_the_network(name, guide):
    """Guides that need all of a sample, too, since all processes have all of it."""
    pipeline = pipeline_of(name)
    exact = sample(pipeline, guide=guide, solver="heun")
    for parts in (1, 4):
        ours = sample(pipeline, Patches(parts=parts, synchronous=True), guide=guide, solver="heun")
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_a_warm_up_of_all_steps_is_synchronous():
    """Step W is the last synchronous one, so W = steps - 1 suffices and W = steps - 2 does not."""
    pipeline = pipeline_of("dit")
    exact = sample(pipeline, Patches(parts=2, synchronous=True))
    assert torch.equal(sample(pipeline, Patches(parts=2, warmup=STEPS - 1)), exact)
    assert torch.equal(sample(pipeline, Patches(parts=2, warmup=STEPS - 1, portion=0.3)), exact)
    assert not torch.equal(sample(pipeline, Patches(parts=2, warmup=STEPS - 2)), exact)


def reference(parts, portion, warmup, layers):
    """`attend` of one layer, written down from the papers: q, k, v of one loop's evaluations, one at each step."""
    calls, last = [0], {}

    def attend(qkv):
        step, own = calls[0], qkv.shape[1] // parts
        calls[0] += 1
        q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, heads, T, d]
        out = []
        for i in range(parts):
            mine = slice(i * own, (i + 1) * own)
            keys, values = (k, v) if step <= warmup else (x.clone() for x in last["kv"])
            keys[:, :, mine], values[:, :, mine] = k[:, :, mine], v[:, :, mine]
            if portion is not None and step > warmup:
                lo, hi = math.floor(own * max(0, i - portion)), math.floor(own * min(i + 1 + portion, parts))
                keys, values = keys[:, :, lo:hi], values[:, :, lo:hi]
            weights = (q[:, :, mine] @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
            out.append(weights @ values)
        last["kv"] = k.clone(), v.clone()
        return torch.cat(out, 2).transpose(1, 2)

    return attend


@pytest.mark.parametrize("portion", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("warmup", [0, 2])
def test_stale_patches_are_those_of_the_papers(warmup, portion):
    pipeline = pipeline_of("dit")
    ours = sample(pipeline, Patches(parts=4, warmup=warmup, portion=portion))
    for module in pipeline.denoiser.net.modules():
        if isinstance(module, Attention):
            module.attend = reference(4, portion, warmup, module)
    torch.testing.assert_close(ours, sample(pipeline), rtol=1e-4, atol=1e-4)


def test_a_portion_of_one_in_two_parts_is_distrifusion():
    pipeline = pipeline_of("lightning_dit")
    whole = sample(pipeline, Patches(parts=2, warmup=1))
    assert torch.equal(sample(pipeline, Patches(parts=2, warmup=1, portion=1.0)), whole)
    assert not torch.equal(sample(pipeline, Patches(parts=2, warmup=1, portion=0.5)), whole)


@torch.no_grad()
def test_staleness_of_a_frozen_input_is_none():
    net = random_net(digits("dit"))
    ours, (x, t, cond) = Patches(parts=4, warmup=0).prepare(net), inputs(net)
    loop = ours.start_loop(5, None)
    outs = [ours(x, t, cond, tap=BoundTap(loop, Context(i, 5, 0, 0.5))) for i in range(5)]
    assert all(torch.equal(out, outs[0]) for out in outs)
    torch.testing.assert_close(outs[0], net(x, t, cond), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_branches_stages_and_loops_do_not_see_each_other():
    net = random_net(digits("dit"))
    ours, (x, t, cond) = Patches(parts=2, warmup=0).prepare(net), inputs(net)
    keys = [(stage, branch) for stage in (0, 1) for branch in ("main", "uncond")]

    def outputs(order):
        loop, found = ours.start_loop(3, None), {}
        for step in range(3):
            for stage, branch in order:
                at = x * (1 + step + 3 * stage + (branch == "uncond"))
                tap = BoundTap(loop, Context(step, 3, stage, 0.5, branch))
                found[step, stage, branch] = ours(at, t, cond, tap=tap)
        return found

    forward, backward = outputs(keys), outputs(keys[::-1])
    for key, out in forward.items():
        assert torch.equal(out, backward[key])
    for key in keys:  # and each alone
        alone = outputs([key])
        assert all(torch.equal(out, forward[at]) for at, out in alone.items())


@pytest.mark.parametrize("loop", ["late", "blocks", "trunk"])
def test_guides_that_begin_late_and_caches(loop):
    pipeline = pipeline_of("dit")
    exact = sample(pipeline, **LOOPS[loop])
    sync = sample(pipeline, Patches(parts=2, synchronous=True), **LOOPS[loop])
    torch.testing.assert_close(sync, exact, rtol=1e-5, atol=1e-5)
    far = sample(pipeline, Patches(parts=2, warmup=0, portion=0.0), **LOOPS[loop]) - exact
    assert 1e-4 < far.norm() / exact.norm() < 1


def test_staleness_costs_half_as_much_at_twice_the_steps():
    """First order in the step, while keys that are left out cost the same at any number of steps, and much more."""
    pipeline = pipeline_of("dit")

    def far(steps, **fields):
        exact = sample(pipeline, steps=steps)
        return (sample(pipeline, Patches(parts=4, warmup=0, **fields), steps=steps) - exact).norm() / exact.norm()

    assert far(10) / far(40) == pytest.approx(4, rel=0.25)
    losses = [float(far(10, portion=portion)) for portion in (1.0, 0.5, 0.3, 0.0)]
    assert losses == sorted(losses)
    assert losses[0] > 10 * far(10)


def test_windows_and_bytes():
    assert [patch_window(i, 4, 40, 0.3) for i in range(4)] == [
        range(13), range(7, 23), range(17, 33), range(27, 40),
    ]  # fmt: skip
    assert [patch_window(i, 2, 10, 0.3) for i in range(2)] == [range(6), range(3, 10)]  # 1.5: up above, down below
    assert patch_window(1, 4, 40) == range(40)
    kv = torch.empty(2, 10, 2, 4, 8)
    assert [patch_exchange_bytes(kv, i, 4, 0.3) for i in range(4)] == [3 * kv.nbytes // 10 * k for k in (1, 2, 2, 1)]
    assert patch_exchange_bytes(kv, 1, 4) == 3 * kv.nbytes


def test_refusals():
    with pytest.raises(UserError, match=r"'patches' needs processes: .* or give parts = 2 to try it in one"):
        Patches().prepare(DiT.preset("digits").build())
    with pytest.raises(UserError, match="'patches': 16 tokens do not divide into 3 parts"):
        Patches(parts=3).prepare(DiT.preset("digits").build())
    with pytest.raises(UserError, match=r"shares out dit, lightning_dit, .* not a LightNetNet"):
        Patches(parts=2).prepare(digits("lightnet").build())
    with pytest.raises(UserError, match=r"under 'patches \(stale, 2 parts\)' each process sees a part"):
        sample(pipeline_of("dit"), Patches(parts=2), cache="fbcache")
    net = random_net(digits("dit"))
    ours, (x, t, cond) = Patches(parts=2, warmup=0).prepare(net), inputs(net)
    with pytest.raises(UserError, match="passes no gradients on"):
        ours(x, t, cond, tap=BoundTap(ours.start_loop(3, None), Context(1, 3, 0, 0.5)))


def test_spec_round_trip():
    engine = Patches(2, 0.3, parts=2)
    assert build("models.engines", spec_of(engine)) == engine
    assert not engine.collective
    assert Patches().collective


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_the_parts_of_one_process(tmp_path, count):
    ranks = spread("tests.models.patch_shares:everything", count, tmp_path)
    for name in NETS:
        for kind in ENGINES:
            for loop in LOOPS:
                key, rank0 = f"{name}, {kind}, {loop}", ranks[0]
                for rank in ranks:
                    assert torch.equal(rank[f"{key} samples"], rank0[f"{key} samples"]), key
                torch.testing.assert_close(
                    rank0[f"{key} samples"], rank0[f"{key} one process"], rtol=1e-4, atol=1e-5, msg=key
                )
            for rank in ranks:
                sent, foretold = rank[f"{name}, {kind}, plain sent"].tolist()
                assert sent == foretold, kind
