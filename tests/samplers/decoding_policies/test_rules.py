"""What each policy commits, in views small enough to read."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.samplers.decoding_policies.ancestral import Ancestral
from gen.samplers.decoding_policies.credit import Credit
from gen.samplers.decoding_policies.dream import Dream
from gen.samplers.decoding_policies.edit import Edit
from gen.samplers.decoding_policies.entropy import Entropy
from gen.samplers.decoding_policies.entropy_bound import EntropyBound
from gen.samplers.decoding_policies.factor import Factor
from gen.samplers.decoding_policies.hierarchy import Hierarchy
from gen.samplers.decoding_policies.local_leap import LocalLeap
from gen.samplers.decoding_policies.rcr import RCR
from gen.samplers.decoding_policies.remdm import ReMDM
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoding
from gen.text.mask_path import Cosine
from gen.text.pipeline import TextPipeline
from tests.samplers.decoding_policies.views import WORDS, chosen, rows, view


@pytest.mark.parametrize(
    ("policy", "confidences", "places"),
    [
        (TopK(2), [0.3, 0.9, 0.5, 0.8], [1, 3]),
        (TopK(2), [0.5, 0.5, 0.5, 0.5], [0, 1]),  # the lowest places among equals
        (TopK(2, "left_to_right"), [0.3, 0.9, 0.5, 0.8], [0, 1]),
        (Threshold(0.75), [0.3, 0.9, 0.5, 0.8], [1, 3]),
        (Threshold(0.95), [0.3, 0.9, 0.5, 0.8], [1]),
        (Threshold(0.5), [0.3, 0.9, 0.5, 0.8], [1, 2, 3]),
        (Threshold(0.5, strict=True), [0.3, 0.9, 0.5, 0.8], [1, 3]),
        # 1 - f / (n + 1) for f = 1: .5, .667, .75, .8
        (Factor(1.0), [0.1, 0.2, 0.3, 0.4], [3]),
        (Factor(1.0), [0.99, 0.5], [0]),  # public code commits both
        (Factor(1.0), [0.99, 0.98, 0.1], [0, 1]),  # and here all three
        (Factor(1.0), [0.99, 0.6, 0.74, 0.98], [0, 3]),  # the third would need more than .75
        (Factor(1.0), [0.99, 0.6, 0.76, 0.98], [0, 2, 3]),
        (Factor(1.0), [0.3, 0.9, 0.9, 0.9], [1, 2, 3]),
        (Factor(1.0), [0.85, 0.85, 0.85, 0.85], [0, 1, 2, 3]),  # all pass
        (Factor(2.0), [0.5, 0.5, 0.3, 0.2], [0, 1]),
        (Factor(50.0), [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3]),
        (Entropy(0.6), [0.3, 0.95, 0.9, 0.5], [1]),
        (Entropy(0.7), [0.3, 0.95, 0.9, 0.5], [1, 2]),
        (LocalLeap(0.9, 0.75, 2), [0.95, 0.8, 0.7, 0.8, 0.8], [0, 1]),
        (LocalLeap(0.9, 0.75, 3), [0.95, 0.8, 0.7, 0.8, 0.8], [0, 1, 3]),
        (LocalLeap(0.9, 0.75, 0), [0.95, 0.8, 0.7, 0.8, 0.8], [0]),
        (LocalLeap(0.9, 0.75, 4), [0.3, 0.8, 0.85, 0.8, 0.8], [2]),  # no anchor: the likeliest alone
        (Hierarchy(0.9, 0.4), [0.5, 0.6, 0.95, 0.3, 0.92], [2, 4]),
        (Hierarchy(0.9, 0.4), [0.1, 0.2, 0.3, 0.2, 0.1], [2]),
        (EntropyBound(0.0), [0.3, 0.9, 0.5, 0.8], [1]),
    ],
)
def test_what_is_committed(policy, confidences, places):
    assert chosen(policy, view([confidences])) == [places]


def test_what_is_not_masked_takes_no_part():
    """The surest of all is committed already, and the next lies behind the window."""
    seen = view([[0.99, 0.6, 0.5, 0.95]], [[0, 1, 1, 1]], in_window=[[1, 1, 1, 0]])
    for policy in (TopK(1), Threshold(0.9), Factor(1.0), EntropyBound(0.0), LocalLeap(0.9, 0.5), Hierarchy(0.9, 0.9)):
        assert chosen(policy, seen) == [[1]]


@pytest.mark.parametrize("policy", [Factor(1.0), TopK(3), Hierarchy(), LocalLeap(), EntropyBound(9.0)])
def test_a_row_without_masks_is_left_alone(policy):
    assert chosen(policy, view([[0.9, 0.9], [0.9, 0.2]], [[0, 0], [1, 0]])) == [[], [0]]


def test_hierarchy_divides_every_run():
    """Runs 0-2, 4-6 and 8, cut by what is committed; the best of each above .4, and the lowest place among equals."""
    masked = [[1, 1, 1, 0, 1, 1, 1, 0, 1]]
    confidences = [[0.5, 0.6, 0.6, 0.99, 0.45, 0.3, 0.2, 0.99, 0.35]]
    assert chosen(Hierarchy(0.9, 0.4), view(confidences, masked)) == [[1, 4]]
    assert chosen(Hierarchy(0.9, 0.3), view(confidences, masked)) == [[1, 4, 8]]
    assert chosen(Hierarchy(0.46, 0.3), view(confidences, masked)) == [[0, 1, 2, 4, 8]]


def test_an_entropy_bound_sums_what_comes_before_the_largest():
    seen = view([[0.6, 0.99, 0.9, 0.97]])
    h = sorted(seen.entropy[0].tolist())
    for k in range(1, 4):
        assert chosen(EntropyBound(sum(h[:k]) - 1e-9), seen)[0] == sorted([1, 3, 2, 0][:k])
        assert chosen(EntropyBound(sum(h[:k]) + 1e-9), seen)[0] == sorted([1, 3, 2, 0][: k + 1])


def test_steps_share_the_masks_of_a_window_out():
    """Seven masks in three steps are 3, 2, 2; in nine they are one each."""
    policy = TopK(steps=3)
    counts = [len(chosen(policy, view([[0.5] * 7], step=step, mask_budget=[7]))[0]) for step in range(3)]
    assert counts == [3, 2, 2]
    assert [len(chosen(TopK(steps=9), view([[0.5] * 7], step=s, mask_budget=[7]))[0]) for s in (0, 6, 8)] == [1, 1, 1]


# By chance


@pytest.mark.parametrize("step", range(4))
def test_ancestral_commits_each_by_itself(step):
    """Of four steps under a log-linear schedule 1/4, 1/3, 1/2 and all of what is left."""
    seen = view([[0.5] * 50] * 200, step=step)
    share = seen.masked & Ancestral(4).select(seen, {})[0].commit
    p = 1 / (4 - step)
    assert float(share.double().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / 10000) ** 0.5 + 1e-12)


def test_ancestral_follows_its_schedule():
    steps = torch.arange(5)
    cosine = build("samplers.decoding_policies", "ancestral", steps=5, path="cosine")
    t = 1 - steps.double() / 5
    mask = 1 - torch.cos(math.pi / 2 * t)
    expected = 1 - torch.cat([mask[1:], torch.zeros(1)]) / mask
    torch.testing.assert_close(cosine.commit_probability(steps), expected.double())
    assert (
        float(
            build("samplers.decoding_policies", "ancestral", steps=5, path="geometric").commit_probability(
                torch.tensor(4)
            )
        )
        == 1
    )


def test_ancestral_follows_the_model_s_path_unless_it_has_its_own():
    steps, named = torch.arange(5), build("samplers.decoding_policies", "ancestral", steps=5, path="geometric")
    own = Decoding(Ancestral(5)).on(Cosine()).policy
    assert torch.equal(own.commit_probability(steps), Ancestral(5, Cosine()).commit_probability(steps))
    assert Decoding(named).on(Cosine()).policy == named
    assert Decoding("topk").on(Cosine()) == Decoding("topk")
    assert TextPipeline(torch.nn.Identity(), None, path=Cosine()).plan(policy="ancestral").policy.path == Cosine()


def test_dream_s_quota_is_each_row_s_own():
    """floor(n (1 - s/t)): with ten masks in four steps 2, 3, 4 (1 of 1 short of 5 by eps), then the rest."""
    grid = [1 - (1 - 1e-3) * i / 4 for i in range(5)]
    for step in range(4):
        masked = [[1] * 10, [1] * 3 + [0] * 7]
        expected = [n if step == 3 else int(n * (1 - grid[step + 1] / grid[step])) for n in (10, 3)]
        places = chosen(Dream(4), view([[0.5] * 10] * 2, masked, step=step, mask_budget=[10, 10]))
        assert [len(p) for p in places] == expected


def test_dream_draws_places_by_their_scores():
    """Without replacement, with probabilities softmax(score / alg_temp): here .7, .2, .1 by margin."""
    n, p = 6000, torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    seen = view([[0.5, 0.5, 0.5]] * n)
    heat = 0.01
    margins = heat * p.log() - heat * p.log().min()
    c = ((WORDS - 1) * margins + 1) / WORDS  # confidences with these margins
    seen = dataclasses.replace(view([c.tolist()] * n), uniform=seen.uniform)
    torch.testing.assert_close(seen.margin[0], margins)
    commit = Dream(1, "margin", heat).select(dataclasses.replace(seen, step=seen.step), {})[0].commit
    assert bool(commit.all())  # the last step takes all
    one = dataclasses.replace(seen, step=torch.zeros(n, dtype=torch.int64))
    first = Dream(2, "margin", heat, eps=0.0).select(one, {})[0].commit  # floor(3 / 2) = 1
    assert first.sum(1).eq(1).all()
    share = first.double().mean(0)
    assert (share - p).abs().max() < 4 * (0.25 / n) ** 0.5


# Memory


def test_credit_decays_and_grows():
    policy = Credit(TopK(1))
    state = policy.init(1, 4)
    best, expected = [[1, 2, 3]], torch.zeros(1, 3, WORDS, dtype=torch.float64)
    for step in range(3):
        seen = view([[0.5, 0.4, 0.3]], best=best, step=step)
        choice, state = policy.select(seen, state)
        expected = 0.8 * expected
        for place, token in enumerate(best[0]):
            expected[0, place, token] += [0.5, 0.4, 0.3][place] ** 0.2
        torch.testing.assert_close(state["credit"], expected)
        fused = (seen.logp + 0.7 * expected.log1p()).log_softmax(-1)
        assert rows(choice) == [[int(fused[0].amax(-1).argmax())]]
        assert torch.equal(choice.tokens, fused.argmax(-1))


def test_credit_makes_sure_what_was_guessed_before():
    """The same guess, .8, three times: with its credit it passes a threshold of .9, which it does not alone."""
    policy = Credit(Threshold(0.9))
    state = policy.init(1, 3)
    counts = []
    for step in range(3):
        choice, state = policy.select(view([[0.8, 0.8, 0.2]], step=step), state)
        counts.append(int(choice.commit.sum()))
    assert counts[0] < counts[-1] == 2
    assert int(Threshold(0.9).select(view([[0.8, 0.8, 0.2]]), {})[0].commit.sum()) == 1


def test_credit_belongs_to_a_place():
    """The window moves on by two places: theirs is forgotten, the others' goes with them."""
    policy = Credit(TopK(1))
    _, state = policy.select(view([[0.5] * 4], best=[[1, 2, 3, 4]], first=7), policy.init(1, 20))
    old = state["credit"]
    _, state = policy.select(view([[0.5] * 4], best=[[5, 5, 5, 5]], first=9), state)
    gain = 0.5**0.2
    torch.testing.assert_close(state["credit"][0, :2, :5], 0.8 * old[0, 2:, :5])
    assert float(state["credit"][0, 2, 3]) == 0
    assert float(state["credit"][0, 2, 5]) == pytest.approx(gain)


def play(policy, confidences, steps, sampled=None):
    """Steps of one row whose predictions never change; the masks after each, and what was taken back."""
    n = len(confidences)
    masked, state, masks, taken = [1] * n, policy.init(1, n), [], []
    for step in range(steps):
        choice, state = policy.select(view([confidences], [masked], step=step, mask_budget=[n], sampled=sampled), state)
        commit = choice.commit[0].tolist()
        remask = [False] * n if choice.remask is None else choice.remask[0].tolist()
        masked = [int((m and not c) or r) for m, c, r in zip(masked, commit, remask, strict=True)]
        masks.append(sum(masked))
        taken.append([i for i, r in enumerate(remask) if r])
    return masks, taken


def test_remdm_revises_late_in_a_window():
    """Eight masks, one a step; before the eighth step three that revise, each the least sure but for the newest."""
    confidences = [0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    masks, taken = play(ReMDM(times=3), confidences, 11)
    assert masks == [7, 6, 5, 4, 3, 2, 2, 2, 2, 1, 0]
    assert taken[:6] == [[]] * 6
    assert taken[6] == [6]  # .4: the surest seven but the newest, .3
    assert taken[9:] == [[], []]
    assert play(ReMDM(times=0), confidences, 8)[0] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_remdm_in_fewer_steps():
    masks, taken = play(ReMDM(steps=4, times=1, count=2), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 5)
    assert masks == [6, 4, 4, 2, 0]
    assert taken[2] == [2, 3]


def test_rcr_keeps_the_surest_and_ends():
    masks, taken = play(RCR(steps=4), [0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], 4)
    assert masks == [6, 4, 2, 0]
    assert taken == [[]] * 4  # nothing changes here, so what was kept stays the surest
    assert play(RCR(), [0.5] * 5, 5)[0] == [4, 3, 2, 1, 0]
    assert play(RCR(steps=100), [0.5] * 3, 3)[0] == [2, 1, 0]


def test_rcr_takes_back_what_turns_out_less_sure():
    policy = RCR(steps=4)
    choice, state = policy.select(view([[0.6, 0.5, 0.4, 0.3]], step=0), policy.init(1, 4))
    assert rows(choice) == [[0]]
    seen = view([[0.1, 0.9, 0.95, 0.3]], [[0, 1, 1, 1]], step=1, mask_budget=[4])
    choice, state = policy.select(seen, state)
    assert rows(choice) == [[1, 2]]
    assert choice.remask.tolist() == [[True, False, False, False]]


# Corrections


def test_edit_commits_what_is_sure_or_what_is_due():
    assert chosen(Edit(0.7), view([[0.8, 0.75, 0.7, 0.2]])) == [[0, 1]]
    assert chosen(Edit(0.7, steps=2), view([[0.8, 0.5, 0.4, 0.2]])) == [[0, 1]]
    assert chosen(Edit(0.7), view([[0.5, 0.6, 0.4, 0.2]])) == [[1]]


def test_edit_corrects_another_token_above_the_threshold():
    """Place 0 keeps its token, 1 is sure of another, 2 is not sure enough, 3 is the prompt, 4 lies in another block."""
    seen = view([[0.9, 0.9, 0.5, 0.9, 0.9, 0.9]], [[0, 0, 0, 0, 0, 1]], best=[[1, 1, 1, 1, 1, 1]],
                tokens=[[1, 2, 2, 2, 2, 0]], prompt_or_pad=[[0, 0, 0, 1, 0, 0]],
                in_window=[[1, 1, 1, 1, 0, 1]])  # fmt: skip
    choice, _ = Edit(edit=0.5).select(seen, Edit().init(1, 6))
    assert choice.edit.tolist() == [[False, True, False, False, False, False]]
    assert Edit(edit=None).select(seen, Edit().init(1, 6))[0].edit is None


@pytest.mark.parametrize(("post", "looks"), [(16, 16), (3, 3), (0, 0)])
def test_two_tokens_that_suggest_each_other_end(post, looks):
    """A becomes B becomes A: at most `post` evaluations after the last mask."""
    policy = Edit(post=post)
    choice, state = policy.select(view([[0.9]], best=[[1]]), policy.init(1, 1))
    found, token = 0, 1
    while bool(choice.hold.any()):
        found, other = found + 1, 3 - token
        choice, state = policy.select(
            view([[0.9]], [[0]], best=[[other]], tokens=[[token]], step=found, mask_budget=[1]), state
        )
        assert choice.edit.all()
        token = other
        assert found < 50
    assert found == looks


def test_a_window_without_corrections_is_looked_at_once():
    policy = Edit()
    choice, state = policy.select(view([[0.9]], best=[[1]]), policy.init(1, 1))
    assert choice.hold.all()
    choice, _ = policy.select(view([[0.9]], [[0]], best=[[1]], tokens=[[1]], step=1, mask_budget=[1]), state)
    assert not choice.hold.any()


def test_edit_is_the_rule_of_diffusers():
    """Its BlockRefinementScheduler, on random logits and half-filled blocks at temperature 0."""
    scheduling = importlib.import_module("diffusers.schedulers.scheduling_block_refinement")
    torch.manual_seed(0)
    scheduler = scheduling.BlockRefinementScheduler(block_length=8)
    scheduler.set_timesteps(3, block_length=8)
    edited = 0
    for step in range(30):
        c = torch.rand(4, 8).double() * 0.9 + 0.05
        best, tokens = torch.randint(0, WORDS, (4, 8)), torch.randint(0, WORDS, (4, 8))
        masked = torch.rand(4, 8) < 0.6
        masked[:, 0] = True
        seen = view(c.tolist(), masked.int().tolist(), best=best.tolist(), tokens=tokens.tolist(), step=step % 3,
                    mask_budget=[8] * 4)  # fmt: skip
        out = scheduler.step(seen.logp.float(), step % 3, seen.tokens, mask_token_id=WORDS, threshold=0.7,
                             editing_threshold=0.6)  # fmt: skip
        choice, _ = Edit(0.7, 0.6, steps=3).select(seen, Edit().init(4, 8))
        assert torch.equal(choice.commit, out.transfer_index)
        assert torch.equal(choice.edit, out.editing_transfer_index)
        edited += int(choice.edit.sum())
    assert edited > 20


def test_the_entropy_bound_is_the_rule_of_diffusers():
    scheduling = importlib.import_module("diffusers.schedulers.scheduling_entropy_bound")
    scheduler = scheduling.EntropyBoundScheduler(entropy_bound=1.5, t_max=1.0, t_min=1.0, num_inference_steps=4)
    torch.manual_seed(0)
    seen = view((torch.rand(20, 8) ** 0.1).clamp(max=0.999).tolist())
    out = scheduler.step(seen.logp, 0, seen.tokens)
    choice, _ = EntropyBound(1.5).select(seen, {})
    assert torch.equal(choice.commit, out.accepted_index)
    assert len(set(choice.commit.sum(1).tolist())) > 1


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "k = 0"),
        (lambda: TopK(steps=0), "steps = 0"),
        (lambda: Threshold(1.5), "must be in"),
        (lambda: Factor(0.0), "factor = 0.0"),
        (lambda: EntropyBound(-1.0), "bound = -1.0"),
        (lambda: Entropy(float("nan")), "threshold: got nan, expected a finite number"),
        (lambda: LocalLeap(0.5, 0.9), r"anchor = 0.5; it must be in \[0.9, 1\]"),
        (lambda: Hierarchy(0.3, 0.4), r"threshold = 0.3; it must be in \[0.4, 1\]"),
        (lambda: Ancestral(0), "steps = 0"),
        (lambda: Dream(0), "steps = 0"),
        (lambda: Edit(edit=2.0), "must be in"),
        (lambda: Edit(post=-1), "post = -1"),
        (lambda: RCR(steps=0), "steps = 0"),
        (lambda: ReMDM(count=0), "count = 0"),
        (lambda: Credit(decay=1.0), "decay = 1.0"),
        (lambda: Credit(Ancestral()), "ancestral may skip"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
