"""The decoding loop, and by name the bugs of public decoders that it must not have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.config.errors import NonFinite, UserError
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.ancestral import Ancestral
from gen.samplers.decoding_policies.credit import Credit
from gen.samplers.decoding_policies.edit import Edit
from gen.samplers.decoding_policies.factor import Factor
from gen.samplers.decoding_policies.remdm import ReMDM
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.samplers.stopping_rules.eos import EOS
from gen.samplers.stopping_rules.eotp import EoTP
from gen.samplers.stopping_rules.prophet import Prophet
from gen.text.contracts import CommitDecision, DecodingPolicy
from gen.text.decoding import Decoding, TokenSampling, step_counts
from gen.text.gaps import Layout
from gen.text.loop import DecodingLoop, decode, decode_steps
from gen.text.prompts import lengths_of
from gen.text.worlds import JointDistribution, replace_joint
from tests.gen.predictors import Fake, Noisy, Table, table_of
from tests.samplers.kv_plans.test_kv import network

MASK, STOP = 12, 9
PROMPTS = [[1, 2, 3], [], [4] * 7, [5, 6], [7]]
LENGTHS = [9, 14, 4, 11, 1]
SEEDS = [11, 12, 13, 14, 15]


def plain(policy=None, temperature=0.0, **fields):
    return Decoding(policy or TopK(1), **({"stopping_rules": ()} | fields), sampling=TokenSampling(temperature))


def same(one, i, other, j):
    """Row i of one result is row j of another, to the bit."""
    n = int(one.text_end[i])
    assert n == int(other.text_end[j])
    for field in ("tokens", "commit_step", "confidence"):
        assert torch.equal(getattr(one, field)[i, :n], getattr(other, field)[j, :n]), field
    for field in ("nfe", "computed", "nfe_full", "prompt_end"):
        assert int(getattr(one, field)[i]) == int(getattr(other, field)[j]), field
    assert one.reasons[i] == other.reasons[j]


def test_the_bound_on_steps_counts_those_that_the_settings_ask_for():
    for policy in (ReMDM(times=5000), Credit(ReMDM(times=5000)), Edit(post=5000), TopK(1, steps=5000)):
        assert step_counts(policy) >= 5000, policy
    assert step_counts(Threshold()) == 0


@pytest.mark.slow
def test_policies_with_many_steps_of_their_own_end():
    done = decode(table_of([1, 2, 3], [0.9, 0.8, 0.7]), [[1]], 2, plain(ReMDM(times=1500)), seed=0)
    assert done.reasons == ["full"] and int(done.nfe[0]) > 1500


# 1. The mask token


@pytest.mark.parametrize(
    "tokens",
    [
        TokenSampling(),
        TokenSampling(1.0),
        TokenSampling(3.0),
        TokenSampling(1.0, top_k=1),
        TokenSampling(1.0, top_p=0.1),
    ],
)
def test_a_mask_is_never_written(tokens):
    """Whatever its logit: in public code a predicted mask is committed as one, or the loop never ends."""
    table = torch.zeros(6, MASK + 1)
    table[:, MASK] = 50.0
    out = decode(Table(table=table), [[1]], 5, Decoding(Threshold(0.5), stopping_rules=(), sampling=tokens))
    assert not (out.tokens == MASK).any()
    assert float(out.confidence[0, 1:].max()) == pytest.approx(1 / 12)  # nor does it take part in the confidence


@pytest.mark.parametrize("wrong", [MASK, MASK + 1, -1])
def test_a_mask_in_a_prompt_is_refused(wrong):
    with pytest.raises(UserError, match=rf"prompt 2 holds {wrong}"):
        decode(Noisy(), [[1], [2, wrong]], 4)


# 2. Progress


@dataclass(frozen=True)
class Idle(DecodingPolicy):
    """A policy that breaks its promise."""

    def select(self, view, state):
        return CommitDecision(torch.zeros_like(view.masked)), state


def test_a_loop_without_end_is_an_error():
    with pytest.raises(RuntimeError, match="does not end"):
        decode(Noisy(), [[1]], 2, plain(Idle()))


def test_many_steps_in_many_windows_are_no_error():
    out = decode(Noisy(), [[]], 20, plain(Ancestral(150), block_schedule=SemiAR(1)))
    assert out.steps > 1000
    assert int(out.nfe[0]) == 20


# 3. Rows


@pytest.mark.parametrize("stops", [(), ("eos",), ("eos", Prophet((2.0, 1.0, 0.5)))], ids=["none", "eos", "prophet"])
@pytest.mark.parametrize("blocks", ["whole", SemiAR(4), SemiAR(5, sub=2)], ids=["whole", "block", "part"])
@pytest.mark.parametrize("policy", [TopK(1, "random"), Edit(0.3, 0.2)], ids=repr)
def test_a_row_is_the_same_in_any_batch(policy, blocks, stops):
    """Ragged prompts and texts, with temperature: alone, among others in any order, and asked seldom."""
    how = Decoding(policy, blocks, stopping_rules=stops, sampling=TokenSampling(0.8, top_p=0.9))
    f = Noisy(eos_token_ids=(STOP,))
    together = decode(f, PROMPTS, LENGTHS, how, seed=SEEDS)
    order = [3, 0, 4, 2, 1]
    mixed = decode(f, [PROMPTS[i] for i in order], [LENGTHS[i] for i in order], how, seed=[SEEDS[i] for i in order])
    seldom = decode(f, PROMPTS, LENGTHS, how, seed=SEEDS, sync_every=5)
    for i in range(5):
        same(together, i, decode(f, [PROMPTS[i]], LENGTHS[i], how, seed=[SEEDS[i]]), 0)
        same(together, i, mixed, order.index(i))
        same(together, i, seldom, i)


def test_tensors_of_the_state_share_no_storage():
    loop = DecodingLoop(Noisy(), plain(Edit(0.3, 0.2), 1.0))
    canvases = [Layout.of(p, n, MASK) for p, n in zip(PROMPTS, LENGTHS, strict=True)]
    loop.add(canvases, [0, 1, 2, 3, 4], SEEDS)
    out = loop.blank()
    for _ in range(4):
        groups = (loop.canvas, loop.schedule, loop.schedule.window, loop.book, out)
        tensors = [v for group in groups for v in vars(group).values() if isinstance(v, torch.Tensor)]
        assert len(tensors) == 7 + 5 + 4 + 6 + 9
        assert len({v.untyped_storage().data_ptr() for v in tensors}) == len(tensors)
        loop.step()
        loop.retire()


def test_rows_with_one_seed_are_alike_and_others_differ():
    out = decode(Noisy(), [[1]] * 3, 12, plain(temperature=1.0), seed=[5, 5, 6])
    assert torch.equal(out.tokens[0], out.tokens[1])
    assert not torch.equal(out.tokens[0], out.tokens[2])


def test_a_number_is_a_seed_for_every_row():
    one, other = (decode(Noisy(), [[1]] * n, 12, plain(temperature=1.0), seed=3) for n in (4, 2))
    assert torch.equal(one.tokens[:2], other.tokens)
    assert len({tuple(row) for row in one.tokens.tolist()}) == 4


# 5. and 6. Lengths, blocks and steps that do not go into one another


@pytest.mark.parametrize("length", [1, 5, 7, 8, 9])
def test_the_last_block_may_be_shorter(length):
    out = decode(Noisy(), [[1, 2]], length, plain(TopK(2), block_schedule=SemiAR(4)))
    assert not (out.tokens == MASK).any()
    assert int(out.nfe[0]) == sum(math.ceil(min(4, length - i) / 2) for i in range(0, length, 4))
    assert out.commit_step[0, 2:].tolist() == sorted(out.commit_step[0, 2:].tolist()) or length > 2


@pytest.mark.parametrize(("steps", "nfe"), [(1, 3), (3, 8), (4, 9), (100, 9)])
def test_steps_are_those_of_a_block(steps, nfe):
    """Nine tokens in blocks of four, four and one: more steps than masks are one token at a time."""
    out = decode(Noisy(), [[]], 9, plain(TopK(steps=steps), block_schedule=SemiAR(4)))
    assert int(out.nfe[0]) == min(nfe, 2 * min(steps, 4) + 1)
    assert not (out.tokens == MASK).any()


# 7. Ties


def test_a_threshold_includes_itself_unless_strict():
    """Places with one of four, or of eight, equally likely tokens."""
    table = torch.zeros(4, MASK + 1, dtype=torch.float64)
    for place, words in enumerate((8, 4, 4, 8)):
        table[place, words:] = -torch.inf
    sure = float(table[1].log_softmax(-1)[0].exp())
    assert sure == pytest.approx(0.25)
    assert decode(Table(table=table), [[]], 4, plain(Threshold(sure))).commit_step[0].tolist() == [2, 1, 1, 3]
    assert decode(Table(table=table), [[]], 4, plain(Threshold(sure, strict=True))).commit_step[0].tolist() == [
        3,
        1,
        2,
        4,
    ]


def test_the_lowest_place_and_token_win_a_tie():
    out = decode(Table(table=torch.zeros(5, MASK + 1)), [[]], 5, plain(TopK(2)))
    assert out.commit_step[0].tolist() == [1, 1, 2, 2, 3]
    assert out.tokens[0].tolist() == [0] * 5


# 8. The factor's rule at the last place


@pytest.mark.parametrize(
    ("sure", "when"), [([0.99, 0.5], [1, 2]), ([0.99, 0.98, 0.1], [1, 1, 2]), ([0.99, 0.9, 0.9], [1, 1, 1])]
)
def test_a_factor_stops_before_the_first_that_fails(sure, when):
    f = table_of([1, 2, 3][: len(sure)], sure)
    assert decode(f, [[]], len(sure), plain(Factor(1.0))).commit_step[0].tolist() == when


# 9. Temperature


def test_an_order_does_not_use_what_was_drawn():
    """Predictions do not change, so with any seed the places are committed in one order; by `sample` they are not."""
    f = table_of([1, 2, 3, 4], [0.5, 0.7, 0.6, 0.4])
    for policy, orders in ((TopK(1), 1), (Threshold(0.65), 1), (TopK(1, "sample"), 10)):
        out = decode(f, [[]] * 50, 4, plain(policy, temperature=1.0))
        assert (len({tuple(row) for row in out.commit_step.tolist()}) == 1) == (orders == 1)
        assert policy.order_depends_on_samples == (orders > 1)
        assert len({tuple(row) for row in out.tokens.tolist()}) > 10


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_is_probable(temperature):
    n, p = 4000, torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    out = decode(
        Table(words=4, table=torch.cat([p.log(), torch.zeros(1)])[None]), [[]] * n, 1, plain(None, temperature)
    )
    share = torch.bincount(out.tokens[:, 0], minlength=4).double() / n
    q = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    assert ((share - q).abs() <= 4 * (q * (1 - q) / n).sqrt() + 1e-12).all()
    assert torch.allclose(
        out.confidence[:, 0].double(), p[out.tokens[:, 0]], atol=1e-7
    )  # at temperature 1, whatever is drawn


def test_rare_tokens_are_drawn():
    """One in 1e9: 32-bit noise has none of it."""
    logp = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64).log().float()
    u = torch.tensor([0.5, 1 - 2e-9, 1 - 0.5e-9], dtype=torch.float64)
    assert TokenSampling(1.0).draw(logp.expand(3, 2), u).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "allowed"),
    [
        (TokenSampling(1.0, top_k=2), {0, 1}),
        (TokenSampling(1.0, top_p=0.6), {0, 1}),
        (TokenSampling(1.0, top_p=0.5), {0}),
        (TokenSampling(9.0, 0.99), {0, 1, 2, 3}),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest(tokens, allowed):
    logp = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    u = torch.linspace(0, 1 - 1e-12, 400, dtype=torch.float64)
    assert set(tokens.draw(logp.expand(400, 4), u).tolist()) == allowed


# 10. The end of a text


def test_finished_rows_cost_no_evaluations():
    f = Noisy()
    out = decode(f, PROMPTS, LENGTHS, plain())
    assert f.calls == [sum(n > k for n in LENGTHS) for k in range(14)]
    assert out.nfe.tolist() == LENGTHS
    assert (out.steps, out.forwards) == (14, 14)


def test_a_stop_token_frees_its_row():
    """Of three rows with stop tokens at 0, 3 and 7, the first takes one evaluation, the others four and eight."""
    prompts = [[1], [2], [3]]

    class Ends(Fake):
        def logits(self, tokens, lengths, positions):
            end = torch.tensor([1, 4, 8])[tokens[:, 0] - 1]
            best = torch.where(positions == end[:, None], STOP, 5)
            return torch.nn.functional.one_hot(best, self.vocab_size) * 9.0

    f = Ends(eos_token_ids=(STOP,))
    out = decode(f, prompts, 20, plain(TopK(1, "left_to_right"), stopping_rules=("eos",)))
    assert out.nfe.tolist() == [1, 4, 8]
    assert f.calls == [3, 2, 2, 2, 1, 1, 1, 1]
    assert out.reasons == ["eos"] * 3
    assert out.text_end.tolist() == [2, 5, 9]
    assert (out.tokens[0, 2:] == STOP).all()  # and behind it padding


def test_a_stop_token_waits_for_the_masks_before_it():
    f = table_of([1, 2, STOP, 4], [0.5, 0.6, 0.9, 0.4], eos_token_ids=(STOP,))
    out = decode(f, [[]], 4, plain(stopping_rules=("eos",), block_schedule="whole"))
    assert out.commit_step[0].tolist() == [3, 2, 1, -1]
    assert out.text(0).tolist() == [1, 2, STOP]
    assert out.tokens[0, 3] == STOP


# 11. Tokens that are ruled out


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_what_is_suppressed_is_never_written(temperature, guidance):
    """Nor does it take part in confidences; public code rules it out after the tokens are drawn."""
    f = table_of([STOP, STOP, 3], [0.9, 0.8, 0.6], eos_token_ids=(STOP,))
    how = Decoding(
        TopK(1),
        "whole",
        stopping_rules=("eos",),
        sampling=TokenSampling(temperature),
        cfg_scale=guidance,
        suppress_tokens=(STOP,),
    )
    out = decode(f, [[]] * 20, 3, how)
    assert not (out.tokens == STOP).any()
    assert out.reasons == ["full"] * 20
    assert (out.commit_step[:, 2] == out.commit_step.min()).all()  # .6 is surer than an eleventh of what STOP leaves
    assert out.confidence.isfinite().all()


# 12. Guidance


@dataclass(eq=False)
class Prompted(Fake):
    """Logits that depend on the first token: one table where it is seen, one where it is masked."""

    given: Any = None
    free: Any = None

    def logits(self, tokens, lengths, positions):
        seen = (tokens[:, 0] != self.mask_token_id)[:, None, None]
        return torch.where(seen, self.given, self.free).expand(*positions.shape, -1)


def test_guidance_is_the_formula_and_counts_twice():
    """u + (w + 1) (c - u), with no attention mask given."""
    torch.manual_seed(0)
    c, u = torch.randn(2, MASK + 1, dtype=torch.float64)
    out = decode(Prompted(given=c, free=u), [[1]], 3, plain(cfg_scale=1.5))
    logits = (u + 2.5 * (c - u))[:MASK]
    assert out.tokens[0, 1:].tolist() == [int(logits.argmax())] * 3
    assert out.confidence[0, 1:].tolist() == pytest.approx([float(logits.softmax(0).max())] * 3, abs=1e-6)
    assert out.nfe.tolist() == [6]
    assert decode(Prompted(given=c, free=u), [[1]], 3, plain()).nfe.tolist() == [3]


def test_guidance_of_ragged_prompts():
    how = Decoding(TopK(2), SemiAR(4), sampling=TokenSampling(0.7), cfg_scale=0.5)
    f = Noisy(eos_token_ids=(STOP,))
    together = decode(f, PROMPTS, LENGTHS, how, seed=SEEDS)
    for i in range(5):
        same(together, i, decode(f, [PROMPTS[i]], LENGTHS[i], how, seed=[SEEDS[i]]), 0)
    hidden = f.contexts[0][5:] if len(f.contexts[0]) == 10 else None
    assert hidden is not None
    assert all((hidden[i, : len(p)] == MASK).all() for i, p in enumerate(PROMPTS))


@pytest.mark.parametrize("policy", [TopK(2), Ancestral(5)], ids=repr)
def test_guidance_that_changes_nothing_changes_nothing(policy):
    """A joint that ignores its prompt, and knows what cannot be: -inf - -inf is no number."""
    joint = JointDistribution(
        *(getattr(replace_joint(5), k) for k in ("support", "probabilities", "n_words")), offset=1
    )
    plain_, guided = (decode(joint, [[1]] * 8, 5, plain(policy, 1.0, cfg_scale=w)) for w in (0.0, 2.0))
    assert torch.equal(plain_.tokens, guided.tokens)
    assert torch.equal(2 * plain_.nfe, guided.nfe)


# 15. Prompts


@dataclass(frozen=True)
class Vandal:
    """Commits, corrects and takes back all that it sees, a few times."""

    order_depends_on_samples: ClassVar[bool] = True
    edits: ClassVar[bool] = True
    may_skip: ClassVar[bool] = False

    def init(self, rows, length):
        return {"seen": torch.zeros(rows, dtype=torch.int64)}

    def select(self, view, state):
        all_ = torch.ones_like(view.masked)
        return CommitDecision(all_, edit=all_, remask=all_ & (state["seen"] < 4)[:, None]), {"seen": state["seen"] + 1}


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("stops", [(), (Prophet((99.0, 99.0, 99.0)),)], ids=["window", "whole"])
@pytest.mark.parametrize("policy", [Vandal(), Edit(0.1, 0.0)], ids=repr)
def test_prompts_and_padding_are_never_touched(policy, stops, block):
    out = decode(
        Noisy(block_size=block),
        PROMPTS,
        LENGTHS,
        plain(policy, 2.0, stopping_rules=stops, block_schedule=SemiAR(3)),
        seed=SEEDS,
    )
    for i, prompt in enumerate(PROMPTS):
        assert out.tokens[i, : len(prompt)].tolist() == prompt
        assert (out.commit_step[i, : len(prompt)] == -1).all()
        assert (out.commit_step[i, int(out.text_end[i]) :] == -1).all()
        assert not (out.text(i) == MASK).any()


def test_a_finished_row_is_not_touched_either():
    """While it stands still, `every` steps long."""
    for sync_every in (1, 6):
        out = decode(
            Noisy(), [[1], [2]], [2, 9], plain(Edit(0.1, 0.0, post=2), 2.0), seed=[1, 2], sync_every=sync_every
        )
        if sync_every == 1:
            first = out
    same(first, 0, out, 0)


# 16. Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_confidences_are_computed_in_single_precision_at_least(dtype):
    """Bfloat16 probabilities have three digits: .9 and .902 would tie, and a text's order with them."""
    torch.manual_seed(0)
    table = (torch.randn(8, MASK + 1) * 3).to(dtype)
    seen = []

    @dataclass(frozen=True)
    class Watch(TopK):
        def select(self, view, state):
            seen.append(view.logp)
            return TopK.select(self, view, state)

    out = decode(Table(table=table, dtype=dtype), [[]], 8, plain(Watch()))
    exact = table.double()[:, :MASK].log_softmax(-1)
    assert seen[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(seen[0][0, :, :MASK].double(), exact, rtol=1e-5, atol=1e-6)
    assert (seen[0][0, :, MASK] == -torch.inf).all()
    assert out.commit_step[0].argsort().tolist() == exact.amax(-1).argsort(descending=True, stable=True).tolist()


# 17. Counting


def test_evaluations_and_places_are_counted():
    out = decode(Noisy(), [[1, 2, 3], []], [4, 6], plain(TopK(2)), seed=1)
    assert out.nfe.tolist() == [2, 3]
    assert out.computed.tolist() == [2 * 7, 3 * 6]  # the prompt is computed each time
    assert out.nfe_full.tolist() == [2, 3]
    assert (out.text_end - out.prompt_end).tolist() == [4, 6]  # and is none of what was written
    assert out.forwards == 3


def test_steps_that_change_nothing_cost_nothing():
    """Rows of an ancestral sampler are evaluated after they changed only, and as often as is expected."""
    steps, n, rows = 20, 6, 200
    f = Noisy()
    out = decode(f, [[]] * rows, n, plain(Ancestral(steps), 1.0, block_schedule="whole"))
    assert sum(f.calls) == int(out.nfe.sum())
    assert (out.nfe == torch.tensor([len(set(row)) for row in out.commit_step.tolist()])).all()
    expected = steps * (1 - (1 - 1 / steps) ** n)
    assert float(out.nfe.double().mean()) == pytest.approx(expected, abs=4 * float(out.nfe.double().std()) / rows**0.5)


# 18. Corrections


@dataclass(eq=False)
class Undecided(Fake):
    """Wants 1 where 2 stands, and 2 where 1 stands."""

    def logits(self, tokens, lengths, positions):
        best = torch.where(tokens.gather(1, positions) == 1, 2, 1)
        return torch.nn.functional.one_hot(best, self.vocab_size) * 9.0


@pytest.mark.parametrize("post", [0, 1, 5])
def test_corrections_end(post):
    """One evaluation for the masks of each block, and `post` more for what is corrected for ever."""
    out = decode(Undecided(), [[3]], 7, plain(Edit(0.5, 0.5, post), block_schedule=SemiAR(3)))
    assert int(out.nfe[0]) == 3 * (1 + post)
    assert out.text(0).tolist() == [1 + post % 2] * 7


def test_corrections_of_many_small_blocks_are_no_error():
    out = decode(Undecided(), [[]], 6, plain(Edit(0.5, 0.5, post=200), block_schedule=SemiAR(1)))
    assert int(out.nfe[0]) == 6 * 201


def test_a_row_that_is_corrected_does_not_wait_for_others():
    how = plain(Edit(0.5, 0.5, 4), block_schedule=SemiAR(3))
    together = decode(Undecided(), [[3], [], [1, 2]], [7, 2, 4], how)
    for i, (prompt, length) in enumerate(zip([[3], [], [1, 2]], [7, 2, 4], strict=True)):
        same(together, i, decode(Undecided(), [prompt], length, how), 0)


# What is told of a step, and what is refused


def test_progress_shows_what_is_there_and_what_is_guessed():
    steps = list(decode_steps(Noisy(), [[1, 2], [3]], [6, 3], plain(TopK(2), block_schedule=SemiAR(4))))
    assert [s.rows for s in steps] == [[0, 1], [0, 1], [0]]
    for s in steps:
        written = s.tokens != MASK
        assert torch.equal(s.guess[written], s.tokens[written])
    assert not (steps[-1].tokens[0] == MASK).any()
    assert steps[0].tokens[0].tolist().count(MASK) == 4
    assert (steps[0].guess[0, :6] != MASK).all()  # the window is guessed, what lies behind it is not
    steps = decode_steps(Noisy(), [[1, 2]], 6, plain(TopK(1), block_schedule=SemiAR(4)))
    assert (list(steps)[4].guess != MASK).all()  # of a window that reaches beyond the canvas, too


@pytest.mark.parametrize(
    ("prompts", "length", "match"),
    [
        ([], 4, "no prompts"),
        ([[1]], [3, 4], "for 1 prompts"),
        ([[1]], 0, "at least 1"),
        ([[1], [2]], [4, -1], "at least 1"),
        ([[1]], 2.5, "length = 2.5; a whole number"),
        ([[1]], [None], "length = \\[None\\]; a whole number"),
    ],
)
def test_wrong_lengths_are_refused(prompts, length, match):
    with pytest.raises(UserError, match=match):
        decode(Noisy(), prompts, length)


def test_a_waiting_policy_goes_without_a_cache():
    with pytest.raises(UserError, match="ancestral may skip steps"):
        Decoding(Ancestral(), kv_plan="prefix")
    with pytest.raises(UserError, match="goes without a kv_plan"):
        Decoding(cfg_scale=1.0, kv_plan="prefix")


def test_lengths_are_any_whole_numbers():
    for given in ([2, 3], (2, 3), torch.tensor([2, 3])):
        assert lengths_of(given, [[1], []]) == [2, 3]
    assert lengths_of(torch.tensor(4), [[1], []]) == [4, 4]


@pytest.mark.parametrize("sync_every", [0, -1, 1.5])
def test_one_asks_after_whole_steps(sync_every):
    with pytest.raises(UserError, match=rf"sync_every( = {sync_every}|: got {sync_every})"):
        decode(Noisy(), [[1]], 4, sync_every=sync_every)


@pytest.mark.parametrize(
    ("suppress", "match"),
    [
        ((-1,), "suppress_tokens holds -1"),
        ((MASK + 1,), f"suppress_tokens holds {MASK + 1}"),
        (tuple(range(MASK)), "holds them all"),
    ],
)
def test_only_tokens_that_there_are_are_suppressed_and_not_all(suppress, match):
    with pytest.raises(UserError, match=match):
        decode(Noisy(), [[1]], 4, Decoding(suppress_tokens=suppress))


@pytest.mark.parametrize("wrong", [3, None, TopK, TokenSampling(), ("topk",)], ids=str)
@pytest.mark.parametrize("part", ["policy", "block_schedule", "kv_plan", "stopping_rules"])
def test_what_is_no_such_part_is_refused(part, wrong):
    if wrong is None and part in ("kv_plan", "stopping_rules"):
        assert not getattr(Decoding(**{part: None}), part)
        return
    with pytest.raises(
        UserError,
        match=r"Decoding.\w+: got .*, expected a name or a spec|unknown name 'topk' in samplers",
    ):
        Decoding(**{part: wrong})


def test_one_stop_may_be_given_as_it_is():
    assert Decoding(stopping_rules="eos") == Decoding(stopping_rules=EOS()) == Decoding(stopping_rules=["eos"])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_temperatures_are_finite(wrong):
    with pytest.raises(UserError, match=r"temperature(: got| = )"):
        TokenSampling(wrong)
    if wrong != -1.0:
        with pytest.raises(UserError, match=r"cfg_scale: got .*, expected a finite number"):
            Decoding(cfg_scale=wrong)


@pytest.mark.parametrize("policy", ["topk", "threshold", "ancestral"])
def test_logits_that_are_nan_end_it_at_once(policy):
    """Nothing is surer than nothing: without a word no place would ever be committed."""
    table = torch.zeros(4, MASK + 1)
    table[3, 2] = math.nan
    with pytest.raises(NonFinite, match="step 1: the logits of text 1 are NaN"):
        decode(Table(table=table), [[1], [1, 1]], [2, 2], Decoding(policy, stopping_rules=()))


# What the host waits for


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads of tensors: item(), bool(), int(), tolist() and nonzero()."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
        self.count += func in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("reads", "how"),
    [
        (0, plain(Threshold(0.9), 1.0, stopping_rules=("eos",))),
        (0, plain(Edit(0.9, 0.9), 1.0, stopping_rules=(EoTP(), "eos"), block_schedule={"name": "multi", "length": 4})),
        (0, plain(ReMDM(), block_schedule="whole", stopping_rules=("prophet", "adaptive"))),
        (1, plain(Ancestral(40), 1.0)),  # which rows have changed
        (1, plain(Threshold(0.9), 1.0, kv_plan="dual")),  # how much is computed
        (1, plain(Threshold(0.9), 1.0, kv_plan="prefix")),
        (0, plain(Threshold(0.9), 1.0, kv_plan="block")),  # at most the last block and the next
        (0, plain(Threshold(0.9), 1.0, kv_plan="sub_block", block_schedule=SemiAR(4, sub=2))),
    ],
    ids=["threshold", "edit", "remdm", "ancestral", "dual", "prefix", "block", "sub_block"],
)
def test_the_host_waits_once_in_every_so_many_steps(reads, how, monkeypatch):
    """As on a GPU, where each look at a number is a wait; stale caches and policies that skip cost one each step."""
    block_size = 4 if how.kv_plan is not None and how.kv_plan.within_blocks else None
    net = network(vocab_size=13, mask_token_id=MASK, eos_token_ids=(STOP,), block_size=block_size)
    given = net, PROMPTS[:3], [20, 20, 18], how
    expected = decode(*given, seed=SEEDS[:3])
    for module in ("loop", "host", "vocabulary"):
        monkeypatch.setattr(f"gen.text.{module}.host_reads_are_free", lambda tensor: False)
    monkeypatch.setattr("gen.models.text._mask_or_none", lambda mask: mask)
    steps = decode_steps(*given, seed=SEEDS[:3], sync_every=6)
    next(steps)
    with Reads(monkeypatch) as seen:
        for _ in range(5):  # up to the sixth, after which the host looks
            next(steps)
        assert seen.count == 5 * reads
        next(steps)
    assert seen.count <= 6 * reads + 2  # who is finished, and why
    while True:
        try:
            next(steps)
        except StopIteration as end:
            for name in ("tokens", "nfe", "computed"):
                assert torch.equal(getattr(end.value, name), getattr(expected, name)), name
            break
