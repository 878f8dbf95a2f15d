"""Continuous batching: rows join and leave, and each text is what it is alone; with every cache."""

import random
from itertools import pairwise

import pytest
import torch

from gen.config.errors import NonFinite, UserError
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.threshold import Threshold
from gen.text.batching import DecodingQueue, QueueFull
from gen.text.contracts import CommitDecision, DecodingPolicy
from gen.text.decoding import Decoding, TokenSampling
from gen.text.gaps import Gap
from gen.text.pipeline import TextPipeline
from gen.text.tokenizers.bytes import Bytes
from tests.gen.predictors import Noisy, Table, table_of
from tests.samplers.kv_plans.test_kv import network

STOP = 9
SMALL = {"vocab_size": 13, "mask_token_id": 12, "eos_token_ids": (STOP,)}


def requests(n, seed=0):
    """Prompts, lengths and seeds of all kinds."""
    rng = random.Random(seed)
    for i in range(n):
        prompt = [rng.randrange(9) for _ in range(rng.randrange(8))]
        gapped = i % 4 == 3
        length = rng.randrange(1, 14)
        yield [*prompt, Gap(max=length), 3, 1] if gapped else prompt, None if gapped else length, rng.randrange(99)


def check(model, n=10, prompts=None, **queue):
    """Requests that come at any time are written as alone; return the largest numbers of rows and of positions."""
    rng, waiting, taken = random.Random(1), [*(prompts or requests(n))], []
    line, most = DecodingQueue(model, **{"max_rows": 4, **queue}), (0, 0)
    while waiting or len(line):
        while waiting and rng.random() < 0.4:
            prompt, length, seed = waiting.pop()
            taken.append((prompt, length, seed, line.submit(prompt, length, seed=seed, stream=rng.random() < 0.5)))
        line.step()
        sizes = [(loop.rows, loop.rows * loop.width) for loop in line.loops]
        most = tuple(max(old, sum(new)) for old, new in zip(most, zip((0, 0), *sizes, strict=True), strict=True))
    for prompt, length, seed, request in taken:
        alone, made = model.generate([prompt], length, seed=seed), request.result()
        assert request.state == "done" and made.documents == alone.documents and made.fills == alone.fills
        one, other = made.decoded[0], alone.decoded[0]
        for name in ("tokens", "gap_start", "commit_step", "confidence", "text_end", "nfe", "computed", "nfe_full"):
            assert getattr(one, name).equal(getattr(other, name)), name
        assert made.reasons == alone.reasons and request.text == alone.texts[0]
    return most


RANDOM = {"name": "topk", "score": "random"}
POLICIES = ["threshold", "edit", "remdm", "credit", {"name": "ancestral", "steps": 5}, RANDOM]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_requests_that_come_and_go_are_written_as_alone(policy):
    for schedule, rules in (("whole", ("eos", "adaptive")), (SemiAR(5, sub=2), ("eotp", "eos"))):
        how = Decoding(policy, schedule, stopping_rules=rules, sampling=TokenSampling(0.8))
        rows, _ = check(TextPipeline(Noisy(eos_token_ids=(STOP,)), None, how), sync_every=2 if rules[0] == "eos" else 1)
        assert rows > 1


PLANS = ["prefix", {"name": "dual", "refresh": 3}, {"name": "vicinity", "near": 2}, "block", "sub_block"]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_caches_of_requests_that_come_and_go(plan, monkeypatch):
    block = 4 if plan in ("block", "sub_block") else None
    if block is not None:  # as on a GPU: spans are as wide as they may be
        monkeypatch.setattr("gen.text.loop.host_reads_are_free", lambda tensor: False)
    net = network(**SMALL, block_size=block, shift=1)
    how = Decoding(Threshold(0.3), SemiAR(4, sub=2), kv_plan=plan)
    prompts = [r for r in requests(12) if block is None or r[1]]
    check(TextPipeline(net, None, how), prompts=prompts, sync_every=1 if block is None else 2)


def test_memory_is_bounded_and_nobody_is_passed_over():
    model = TextPipeline(Noisy(), None, Decoding("topk", stopping_rules=()))
    rows, positions = check(model, 12, max_rows=5, max_tokens=40)
    assert rows <= 5 and positions <= 40
    line = DecodingQueue(model, max_rows=2, max_tokens=20, max_waiting=1)
    asked = [line.submit([1], n) for n in (15, 5, 2)]
    with pytest.raises(QueueFull, match="3 requests run or wait already"):
        line.submit([1], 2)
    line.step()
    assert [request.state for request in asked] == ["running", "waiting", "waiting"]
    with pytest.raises(UserError, match="a text of 22 tokens; this queue decodes at most 20"):
        line.submit([1], 21)
    line.run()
    assert [request.state for request in asked] == ["done"] * 3 and len(line) == 0


def test_what_is_cancelled_leaves_at_once_and_others_do_not_notice():
    model = TextPipeline(Noisy(), None, Decoding("topk", stopping_rules=(), sampling=TokenSampling(1.0)))
    line = DecodingQueue(model, max_rows=3, sync_every=4)
    asked = [line.submit([i], 9, seed=i) for i in range(6)]
    for _ in range(3):
        line.step()
    for i in (0, 2, 4):
        line.cancel(asked[i])
    assert [request.state for request in asked[1::2]] == ["running", "waiting", "waiting"]
    assert {request.state for request in asked[::2]} == {"cancelled"}
    with pytest.raises(UserError, match="request 0 is cancelled and has no text"):
        asked[0].result()
    line.run()
    line.cancel(asked[1])
    for i in (1, 3, 5):
        assert asked[i].result().texts == model.generate([[i]], 9, seed=i).texts


def test_requests_with_other_settings_have_loops_of_their_own():
    model = TextPipeline(Noisy(), None, Decoding("topk", stopping_rules=()))
    line = DecodingQueue(model)
    ways = [{"temperature": 0.3 * (i % 3), "policy": ("topk", "threshold")[i % 2]} for i in range(8)]
    asked = [line.submit([1], 6, seed=i, **how) for i, how in enumerate(ways)]
    line.step()
    assert len(line.loops) == 6 and line.loops[0].rows == 2
    line.run()
    for i, (request, how) in enumerate(zip(asked, ways, strict=True)):
        assert request.result().texts == model.generate([1], 6, seed=i, **how).texts
    assert not line.loops


class Idle(DecodingPolicy):
    """A policy that breaks its promise."""

    def select(self, view, state):
        return CommitDecision(torch.zeros_like(view.masked)), state


def test_what_fails_fails_alone():
    table = torch.zeros(12, 13)
    table[6, 2] = torch.nan
    model = TextPipeline(Table(table=table), None, Decoding("topk", stopping_rules=()))
    line = DecodingQueue(model)
    good, bad = line.submit([1], 4), line.submit([1] * 4, 4)
    idle = line.submit([1], 1, policy=Idle())
    line.run()
    assert good.result().tokens == 4 and bad.state == idle.state == "failed"
    with pytest.raises(NonFinite):
        bad.result()
    with pytest.raises(RuntimeError, match="does not end"):
        idle.result()
    at_once = {"policy": {"name": "ancestral", "steps": 1}}  # it commits whatever the logits are
    line = DecodingQueue(model)
    good, bad = line.submit([1], 4, **at_once), line.submit([1] * 4, 4, **at_once)
    line.run()
    assert good.result().tokens == 4 and isinstance(bad.error, NonFinite)
    broken = TextPipeline(Noisy(), None)
    broken.net.logits = None
    line = DecodingQueue(broken)
    asked = line.submit([1], 3)
    assert line.step() == [asked] and isinstance(asked.error, TypeError) and not len(line)


class Picky(Bytes):
    """A tokenizer that has no string of texts with an "x" in them."""

    def decode(self, ids):
        if ord("x") in list(ids):
            raise UserError("no string")
        return super().decode(ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_without_a_string_fails_alone(stream):
    net = table_of([ord("x"), ord("a"), ord("b"), ord("x")], [0.9, 0.8, 0.7, 0.6], words=257)
    line = DecodingQueue(TextPipeline(net, Picky(), Decoding("topk", stopping_rules=())), sync_every=2)
    bad, good, other = (line.submit([1] * n, k, stream=stream) for n, k in ((0, 3), (1, 2), (3, 1)))
    line.run()
    assert good.result().texts == ["ab"] and good.text == "ab"
    assert bad.state == other.state == "failed" and not line.loops
    with pytest.raises(UserError, match="no string"):
        bad.result()


def test_a_stream_only_grows_and_ends_in_the_text():
    for policy in ("topk", "edit", "remdm", "rcr"):
        model = TextPipeline(Noisy(), None, Decoding(policy, SemiAR(3)))
        line, seen = DecodingQueue(model), []
        request = line.submit([1], 14, stream=True, seed=4)
        while not request.finished:
            line.step()
            seen.append(request.text)
        assert all(b.startswith(a) for a, b in pairwise(seen)) and len(set(seen)) > 2
        assert seen[-1] == model.generate([1], 14, seed=4).texts[0]


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"max_tokens": 0}, {"max_waiting": 0}, {"sync_every": 0}], ids=str)
def test_limits_are_at_least_one(wrong):
    with pytest.raises(UserError, match="it must be in"):
        DecodingQueue(TextPipeline(Noisy(), None), **wrong)
