"""Plans of keys and values: exact where they promise it, measurably stale where they do not, and counted truly."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.models.text import Text
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.samplers.kv_plans.block import Block
from gen.samplers.kv_plans.dual import Dual
from gen.samplers.kv_plans.prefix import Prefix
from gen.samplers.kv_plans.sub_block import SubBlock
from gen.samplers.kv_plans.vicinity import Vicinity
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode, decode_steps

MASK = 10
PROMPTS = [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8, 1, 8, 2]]
LENGTHS = [11, 14, 6]  # canvases of 16, 16 and 13 tokens


@dataclass(frozen=True, eq=False)
class Watched:
    """A predictor that notes of each forward what it computes, the first place asked for, and its logits' errors."""

    inner: Any
    spans: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, tokens, lengths=None, positions=None, *, kv_cache=None, span=None):
        got = self.inner(tokens, lengths, positions, kv_cache=kv_cache, span=span)
        if span is not None:
            n = tokens.shape[1]
            self.spans.append([[p for p in row if p < n] for row in span.positions.tolist()])
            self.asked.append(positions[:, 0].tolist())
            within = (positions[..., None] - self.shift == span.positions[:, None]).any(-1)
            within |= positions == 0  # else it is arbitrary
            away = (got - self.inner(tokens, lengths, positions)).abs().amax(-1)
            self.errors.append((away * within).amax(1))
        return got


def network(dtype=torch.float64, **changes):
    """A random network that is far from uniform."""
    torch.manual_seed(0)
    small = {
        "vocab_size": 11,
        "mask_token_id": MASK,
        "eos_token_ids": (9,),
        "length": 40,
        "width": 16,
        "depth": 3,
        "heads": 4,
        "kv_heads": 2,
    }
    net = Text(**{**small, **changes}).build()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    return net.to(dtype)


def how(kv_plan=None, length=4, sub=None, policy=None, **more):
    """One token at a time in blocks of four, to the end."""
    policy = policy or TopK(1)
    return Decoding(
        policy=policy, block_schedule=SemiAR(length, sub), kv_plan=kv_plan, **{"stopping_rules": (), **more}
    )


def same(a, b):
    assert a.tokens.equal(b.tokens)
    assert a.commit_step.equal(b.commit_step)
    assert a.nfe.equal(b.nfe)
    assert a.text_end.equal(b.text_end)


# Exact plans


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"])
def test_block_causal_logits_from_memory_are_those_without(depth, shift, dtype, tol):
    net = network(dtype, block_size=4, shift=shift, depth=depth)
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        watched = Watched(net)
        cached = decode(watched, [prompt], length, how(Block()))
        assert max(float(e.max()) for e in watched.errors) < tol
        same(cached, decode(net, [prompt], length, how()))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("policy", [TopK(1), TopK(3, score="random"), Threshold(0.3)], ids=repr)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_block_decodes_the_same_tokens_in_ragged_batches(shift, policy, temperature):
    net = network(block_size=4, shift=shift)
    options = {"policy": policy, "sampling": TokenSampling(temperature), "stopping_rules": ("eos",)}
    same(*(decode(net, PROMPTS, LENGTHS, how(cache, **options), seed=3) for cache in (Block(), None)))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("plan", [Prefix(), Dual(), Vicinity(near=2, warmup=0)], ids=repr)
def test_one_layer_remembers_exactly(plan, shift):
    """Its keys and values depend on the tokens alone: only what was committed and not computed since could differ."""
    net = network(depth=1, shift=shift)
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        watched = Watched(net)
        cached = decode(watched, [prompt], length, how(plan))
        assert max(float(e.max()) for e in watched.errors) < 1e-12
        same(cached, decode(net, [prompt], length, how()))


@pytest.mark.parametrize("plan", [Prefix(), Dual(), Vicinity(near=2, warmup=0)], ids=repr)
def test_three_layers_are_stale_but_not_at_the_first_step_of_a_block(plan):
    watched = Watched(network())
    decode(watched, [PROMPTS[0]], LENGTHS[0], how(plan))
    errors = [float(e.max()) for e in watched.errors]
    first = [len(s[0]) == 16 for s in watched.spans]
    assert [i for i, full in enumerate(first) if full] == [0, 4, 8]  # 11 tokens one by one, in blocks of 4, 4 and 3
    assert max(e for e, full in zip(errors, first, strict=True) if full) < 1e-12
    assert min(e for e, full in zip(errors, first, strict=True) if not full) > 1e-6


@pytest.mark.parametrize("plan", [Prefix(1), Dual(1), Vicinity(0, 0, 1)], ids=repr)
@pytest.mark.parametrize("shift", [0, 1])
def test_refresh_1_is_no_cache(plan, shift):
    net = network(shift=shift)
    cached, plain = (decode(net, PROMPTS, LENGTHS, how(cache)) for cache in (plan, None))
    same(cached, plain)
    assert cached.computed.equal(plain.computed) and cached.nfe_full.equal(plain.nfe_full)


@pytest.mark.parametrize(
    ("plan", "full"), [(Prefix(2), 6), (Dual(3), 5), (Vicinity(1, 4), 6), (Vicinity(1, 0), 3)], ids=repr
)
def test_how_often_everything_is_computed(plan, full):
    """Blocks of 4, 4 and 3 steps: at steps 0 and 2 of each, or 0 and 3; in all of the first and once in the others."""
    done = decode(network(), [PROMPTS[0]], LENGTHS[0], how(plan))
    assert (done.nfe.item(), done.nfe_full.item()) == (11, full)


@pytest.mark.parametrize(
    ("plan", "computed"),
    [
        (None, 11 * 16),
        (Prefix(), 3 * 16 + 3 * 11 + 3 * 7 + 2 * 3),
        (Dual(), 3 * 16 + 3 * 4 + 3 * 4 + 2 * 3),
        (Vicinity(2, 0), 3 * 16 + 3 * 8 + 3 * 8 + 2 * 5),
    ],
    ids=repr,
)
def test_computed_places_are_counted(plan, computed):
    done = decode(network(), [PROMPTS[0]], LENGTHS[0], how(plan))
    assert done.computed.item() == computed
    assert done.nfe.item() == done.forwards == 11


@pytest.mark.parametrize(("plan", "end"), [(Prefix(), 16), (Dual(), 9)], ids=repr)
def test_windows_within_a_block_do_not_narrow_what_is_computed(plan, end):
    watched = Watched(network())
    decode(watched, [PROMPTS[0]], LENGTHS[0], how(plan, sub=2))
    assert watched.spans[:4] == [[list(range(16))]] + 3 * [[list(range(5, end))]]


@pytest.mark.parametrize("shift", [0, 1])
def test_block_counts(shift):
    """Its own blocks of a canvas of 16 whose prompt has 5: 3 steps in [4, 8) and 4 in each of [8, 12), [12, 16)."""
    done = decode(network(block_size=4, shift=shift), [PROMPTS[0]], LENGTHS[0], how(Block()))
    # [0, 8) and twice [4, 8); [4, 12) and three times [8, 12); [8, 16) and three times [12, 16); the place before a
    # window that begins its block is computed too where it predicts the first place.
    assert done.computed.item() == 8 + 2 * 4 + (8 + 3 * 4) + (8 + 3 * 4) + shift * 6
    assert (done.nfe.item(), done.nfe_full.item()) == (11, 0)


# Sub-blocks


@pytest.mark.parametrize("shift", [0, 1])
def test_sub_blocks_of_one_layer_are_exact_and_of_three_are_not(shift):
    for depth in (1, 3):
        net, errors = network(block_size=8, shift=shift, depth=depth), []
        for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
            watched = Watched(net)
            cached = decode(watched, [prompt], length, how(SubBlock(), sub=4))
            errors += [float(e.max()) for e in watched.errors]
            if depth == 1:
                same(cached, decode(net, [prompt], length, how(sub=4)))
        assert (max(errors) < 1e-12) == (depth == 1)


def test_sub_block_with_refresh_1_or_whole_windows_is_block():
    net, prompts = network(block_size=8), [[3, 1, 4, 1, 5, 9, 2, 6], [2] * 16]
    for one, other in ((how(SubBlock(1), sub=4), how(Block(), sub=4)), (how(SubBlock()), how(Block()))):
        a, b = (decode(net, prompts, 13, h) for h in (one, other))
        same(a, b)
        assert a.computed.equal(b.computed)


def test_sub_block_computes_the_block_at_the_first_step_of_each_window():
    watched = Watched(network(block_size=8))
    decode(watched, [[1] * 8], 8, how(SubBlock(), sub=4))
    assert watched.spans == [[list(range(16))]] + 3 * [[[8, 9, 10, 11]]] + [[list(range(8, 16))]] + 3 * [
        [[12, 13, 14, 15]]
    ]


# The two entries of the catalogue of published bugs that are about memory


@pytest.mark.parametrize("sub", [None, 2])
def test_bug_13_shifted_models_read_the_place_before_a_window(sub):
    """The output that predicts a window's first place lies before the window: it must be computed with it."""
    for plan, block in ((Dual(), None), (Prefix(), None), (Vicinity(0, 0), None), (SubBlock(), 4), (Block(), 4)):
        watched = Watched(network(block_size=block, shift=1, depth=1))
        cached = decode(watched, [PROMPTS[0]], LENGTHS[0], how(plan, sub=sub))
        assert max(float(e.max()) for e in watched.errors) < 1e-12
        assert all(row[0] < lo for (row,), (lo,) in zip(watched.spans, watched.asked, strict=True))
        same(cached, decode(watched.inner, [PROMPTS[0]], LENGTHS[0], how(sub=sub)))


def test_bug_14_a_finished_block_costs_no_forward_and_is_stored_clean():
    net = network(block_size=4)
    watched = Watched(net)
    cached = decode(watched, [[1] * 4], 12, how(Block(), policy=TopK(4)))
    assert watched.spans == [[list(range(8))], [list(range(4, 12))], [list(range(8, 16))]]
    assert cached.nfe.item() == cached.forwards == 3  # three blocks, each in one step: nothing is spent on storing them
    assert decode(net, [[1] * 4], 12, how(policy=TopK(4))).nfe.item() == 3
    assert max(float(e.max()) for e in watched.errors) < 1e-12


@pytest.mark.parametrize("plan", [Dual(), Block()], ids=repr)
def test_bug_14_two_decodings_of_one_network_at_once(plan):
    net = network(block_size=4 if plan == Block() else None)
    alone = [decode(net, [p], 9, how(plan)).tokens for p in PROMPTS[:2]]
    together = [decode_steps(net, [p], 9, how(plan)) for p in PROMPTS[:2]]
    found = [None, None]
    while any(f is None for f in found):
        for i, steps in enumerate(together):
            try:
                next(steps)
            except StopIteration as end:
                found[i] = end.value.tokens
    assert all(a.equal(b) for a, b in zip(alone, found, strict=True))


# Batches

PLANS = [None, Prefix(), Prefix(2), Dual(), Dual(3), Vicinity(2, 3), Block(), SubBlock()]


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@pytest.mark.parametrize(("shift", "sync_every"), [(0, 1), (1, 3)])
def test_a_row_alone_is_the_row_of_a_batch(plan, shift, sync_every):
    """Prompts and lengths of all kinds, partial last blocks, rows that leave before others, stop tokens."""
    net = network(block_size=4 if isinstance(plan, Block | SubBlock) else None, shift=shift)
    options = how(plan, policy=Threshold(0.4), stopping_rules=("eos",), sub=2)
    together = decode(net, PROMPTS, LENGTHS, options, seed=[5, 6, 7], sync_every=sync_every)
    assert together.nfe.unique().numel() > 1
    for i, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        alone = decode(net, [prompt], length, options, seed=[5 + i])
        assert together.text(i).equal(alone.text(0))
        for name in ("nfe", "computed", "nfe_full"):
            assert getattr(together, name)[i] == getattr(alone, name)[0], name


@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_blocks_that_do_not_divide_the_text(plan):
    net = network(block_size=6 if isinstance(plan, Block | SubBlock) else None)
    done = decode(net, [[1, 2, 3]], 13, how(plan, length=6, sub=4, policy=TopK(2)))
    assert not (done.tokens == MASK).any()
    assert done.text_end.item() == 16


# Who fits whom


@pytest.mark.parametrize("name", names("samplers.kv_plans"))
def test_every_plan_fits_some_predictor_and_spans_hold_the_window(name):
    plan = build("samplers.kv_plans", {"name": name, **({"near": 2, "warmup": 1} if name == "vicinity" else {})})
    blocks = name in ("block", "sub_block")
    if blocks:
        with pytest.raises(UserError, match="block-causal") as caught:
            decode(network(), PROMPTS, 5, how(plan))
        assert "\n" not in str(caught.value)
    watched = Watched(network(block_size=4 if blocks else None))
    decode(watched, [PROMPTS[0]], LENGTHS[0], how(plan))
    assert len(watched.spans) == 11
    assert sum(len(row) for (row,) in watched.spans) < 11 * 16
    assert all(row[0] <= lo for (row,), (lo,) in zip(watched.spans, watched.asked, strict=True))
    assert not plan.to_text_end or all(row[-1] == 15 for (row,) in watched.spans)


@pytest.mark.parametrize(
    "wrong",
    [(Prefix, {"refresh": 0}), (Vicinity, {"near": -1}), (Vicinity, {"warmup": -1}), (SubBlock, {"refresh": 0})],
)
def test_wrong_fields_are_refused(wrong):
    with pytest.raises(UserError, match="it must be in"):
        wrong[0](**wrong[1])
