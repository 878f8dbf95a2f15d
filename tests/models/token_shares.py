"""What each process of tests/models/test_sequence_parallel.py computes."""

import pytest
import torch
import torch.distributed as dist

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.tap import FeatureRecorder
from gen.kernels.sequence_parallel import (
    gather_tokens_bytes,
    ring_attention_bytes,
    ulysses_attention_bytes,
    usp_attention_bytes,
)
from gen.models.engines.sequence import Sequence
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.models.test_families import digits, inputs, random_net

NETS = {"dit": {}, "lightning_dit": {"qk_norm": True}}
FORETOLD = {
    "ulysses": ulysses_attention_bytes,
    "ring": ring_attention_bytes,
    "usp": lambda qkv, count, backward: usp_attention_bytes(qkv, 2, count // 2, backward),
}


def far(ours, theirs):
    return (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)


def comparison(name, method, dtype):
    """How far output and gradients are from those of the network alone, and the bytes sent beside those foretold."""
    net = random_net(digits(name, **NETS[name]), dtype=dtype)
    made = Sequence(method, 2 if method == "usp" else None).prepare(net)
    x, t, cond = inputs(net, dtype=dtype)
    alone, out = net(x, t, cond), made(x, t, cond)
    sent, count = made.traffic.sent, dist.get_world_size()
    for result in (alone, out):
        (result * x).sum().backward()
    grads = [far(everyones(mine.grad), theirs.grad) for mine, theirs in
             zip(made.inner.parameters(), net.parameters(), strict=True) if theirs.grad is not None]  # fmt: skip
    share = torch.empty(len(x), 16 // count, 3, net.spec.heads, 64 // net.spec.heads, dtype=dtype)
    tokens = torch.empty(len(x), 16 // count, 64, dtype=dtype)
    foretold = [
        net.spec.depth * FORETOLD[method](share, count, backward) + gather_tokens_bytes(tokens, count, backward)
        for backward in (False, True)
    ]
    assert len(grads) > 40
    kind = str(dtype).removeprefix("torch.")
    return {f"{name} {method} {kind} out": far(out, alone),
            f"{name} {method} {kind} grads": torch.stack(grads).max(),
            f"{name} {method} {kind} sent": torch.tensor([sent, made.traffic.sent]),
            f"{name} {method} {kind} foretold": torch.tensor(foretold)}  # fmt: skip


def everyones(grad):
    """The mean over processes."""
    total = grad.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def sites():
    """The same sites as in the network itself, of the own tokens within the trunk."""
    net = random_net(digits("dit"))
    x, t, cond = inputs(net)
    ours, theirs = FeatureRecorder(), FeatureRecorder()
    Sequence("ring").prepare(net)(x, t, cond, tap=ours)
    net(x, t, cond, tap=theirs)
    assert list(ours.features) == list(theirs.features)
    inside = [site for site in theirs.features if site.startswith(("hidden.", "blocks."))]
    assert len(inside) == 6 * net.spec.depth
    for site, whole in theirs.features.items():
        part = whole.chunk(dist.get_world_size(), 1)[dist.get_rank()] if site in inside else whole
        torch.testing.assert_close(ours.features[site], part, rtol=1e-10, atol=1e-12)


def samples():
    net = random_net(digits("dit"), dtype=torch.float32)
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=3))
    made = pipeline.prepared({"name": "sequence"}).sample(4)
    assert made.engine == f"sequence (ulysses, {dist.get_world_size()} processes)"
    return {"samples": made.x, "samples alone": pipeline.sample(4).x}


def refusals():
    count = dist.get_world_size()
    odd = digits("dit", heads=count - 1, width=4 * (count - 1)).build()
    with pytest.raises(
        UserError, match=rf"^the engine 'sequence': {count - 1} heads do not divide .* use method ring$"
    ):
        Sequence().prepare(odd)
    with pytest.raises(
        UserError, match=r"^the engine 'sequence': 3 heads do not divide over 2 processes; use method ring$"
    ):
        Sequence("usp", 2).prepare(odd)
    with pytest.raises(UserError, match=r"^the engine 'sequence': 4 processes do not form groups of ulysses = 3$"):
        Sequence("usp", 3).prepare(digits("dit").build())
    with pytest.raises(UserError, match=rf"^the engine 'sequence': 1 tokens do not divide over {count} processes$"):
        Sequence("ring").prepare(digits("dit", patch=8).build())
    with pytest.raises(UserError, match=r"shares out tokens of dit, lightning_dit, not of LightNetNet$"):
        Sequence().prepare(digits("lightnet").build())


def everything():
    found = samples()
    for name in NETS:
        for method in FORETOLD:
            for dtype in (torch.float32, torch.float64):
                found |= comparison(name, method, dtype)
    sites()
    if dist.get_world_size() == 4:
        refusals()
    return found
