"""When a text is done early: stop tokens, foreseen ones, certain answers, and guesses that no longer change."""

from __future__ import annotations

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import names
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.samplers.stopping_rules.adaptive import Adaptive
from gen.samplers.stopping_rules.eos import EOS
from gen.samplers.stopping_rules.eotp import EoTP
from gen.samplers.stopping_rules.prophet import Prophet
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode
from gen.text.worlds import replace_joint
from tests.gen.predictors import Noisy, table_of

STOP = 9
MASK = 12


def run(f, length, policy=None, *stops, prompt=(), block_schedule="whole", **how):
    return decode(f, [list(prompt)], length, Decoding(policy or TopK(1), block_schedule, stopping_rules=stops, **how))


# A stop token


def test_a_text_ends_with_a_stop_token_that_no_mask_precedes():
    """The stop token is written first, the two before it after; what follows is never decoded."""
    f = table_of([1, 2, STOP, 4, 5], [0.5, 0.6, 0.9, 0.4, 0.3], eos_token_ids=(STOP,))
    out = run(f, 5, None, EOS())
    assert out.text(0).tolist() == [1, 2, STOP]
    assert out.tokens[0].tolist() == [1, 2, STOP, STOP, STOP]  # padding
    assert out.commit_step[0].tolist() == [3, 2, 1, -1, -1]
    assert (int(out.nfe[0]), out.reasons) == (3, ["eos"])


def test_a_stop_token_of_the_prompt_ends_nothing():
    f = table_of([0, 0, 1, 2, 3], [0.5] * 5, eos_token_ids=(STOP,))
    out = run(f, 3, None, EOS(), prompt=(STOP, STOP))
    assert out.text(0).tolist() == [1, 2, 3]
    assert out.reasons == ["full"]


def test_the_first_of_several_stop_tokens_counts():
    f = table_of([1, 8, STOP, STOP], [0.9, 0.8, 0.7, 0.6], eos_token_ids=(STOP, 8))
    assert run(f, 4, TopK(4), EOS()).text(0).tolist() == [1, 8]


# A stop token that is foreseen


def test_a_text_is_cut_where_its_end_is_foreseen():
    """.95 at place 2 before anything stands there: what lies behind is not computed any more."""
    f = table_of([1, 2, STOP, 4, 5, STOP], [0.5, 0.6, 0.95, 0.4, 0.3, 0.99], eos_token_ids=(STOP,))
    out = run(f, 6, TopK(1, "left_to_right"), EoTP(), EOS())
    assert out.text(0).tolist() == [1, 2, STOP]
    assert int(out.text_end[0]) == 3
    assert int(out.nfe[0]) == 3
    assert out.computed.tolist() == [6 + 3 + 3]


def test_the_first_sure_stop_token_counts_not_the_surest():
    """Public code falls back to the surest one: place 3, though 1 is as good as certain."""
    f = table_of([1, STOP, 3, STOP], [0.5, 0.95, 0.4, 0.99], eos_token_ids=(STOP,))
    assert run(f, 4, TopK(1), EoTP()).text(0).tolist() == [1, STOP]
    unsure = table_of([1, STOP, 3, STOP], [0.5, 0.8, 0.4, 0.85], eos_token_ids=(STOP,))
    assert run(unsure, 4, TopK(1), EoTP()).text(0).tolist() == [1, STOP, 3, STOP]


def test_a_text_is_also_cut_after_a_stop_token_that_was_just_written():
    """Or a policy that commits what is sure would leave nothing to foresee."""
    f = table_of([1, 2, STOP, 4], [0.5, 0.6, 0.95, 0.4], eos_token_ids=(STOP,))
    out = run(f, 4, Threshold(0.9), EoTP(), EOS())
    assert out.commit_step[0].tolist() == [3, 2, 1, -1]
    assert out.computed.tolist() == [4 + 3 + 3]


def test_what_was_drawn_instead_of_a_foreseen_end_counts():
    f = table_of([1, STOP, 3], [0.1, 0.6, 0.1], eos_token_ids=(STOP,))
    how = Decoding(Threshold(0.5), "whole", stopping_rules=(EoTP(0.5),), sampling=TokenSampling(1.0))
    out = decode(f, [[]] * 40, 3, how)
    stopped = out.tokens[:, 1] == STOP
    assert 5 < int(stopped.sum()) < 35
    assert torch.equal(out.text_end, torch.where(stopped, 2, 3))


def test_masks_before_a_foreseen_end_are_decoded():
    f = table_of([1, 2, 3, STOP, 5], [0.1, 0.1, 0.1, 0.99, 0.1], eos_token_ids=(STOP,))
    out = run(f, 5, TopK(1), EoTP(), EOS())
    assert out.text(0).tolist() == [1, 2, 3, STOP]
    assert (out.commit_step[0, :4] > 0).all()


def test_an_end_is_foreseen_in_the_window_only_if_so_told():
    f = table_of([1, 2, 3, STOP], [0.5, 0.5, 0.5, 0.99], eos_token_ids=(STOP,))
    blocks = {"name": "semi_ar", "length": 2}
    assert run(f, 4, None, EoTP(), block_schedule=blocks).computed.tolist() == [4 * 4]
    far = table_of([1, 2, STOP, 4, 5, 6], [0.5, 0.5, 0.99, 0.5, 0.5, 0.5], eos_token_ids=(STOP,))
    assert run(far, 6, None, EoTP(), EOS(), block_schedule=blocks).computed.tolist() == [6 + 3 + 3]
    assert run(far, 6, None, EoTP(whole_text=False), EOS(), block_schedule=blocks).computed.tolist() == [6 + 6 + 6]


# A certain answer


def sharp(gap, n, tokens=None):
    """Predictions whose two likeliest tokens are `gap` nats apart, at each place."""
    gaps = gap if isinstance(gap, list) else [gap] * n
    sure = [1 / (1 + 11 * math.exp(-g)) for g in gaps]
    return table_of(tokens or [1 + i % 7 for i in range(n)], sure, eos_token_ids=(STOP,))


@pytest.mark.parametrize(("gap", "nfe"), [(7.6, 1), (7.4, 4), (5.1, 4), (4.9, 7), (2.6, 7), (2.4, 10)])
def test_prophet_asks_less_the_further_a_text_is(gap, nfe):
    """Ten tokens, one a step: 7.5 nats at first, 5 from .33 on (the fourth step, .4), 2.5 from .67 on (the seventh)."""
    out = run(sharp(gap, 10), 10, None, Prophet())
    assert int(out.nfe[0]) == nfe
    assert out.text(0).tolist() == [1 + i % 7 for i in range(10)]
    assert out.reasons == ["prophet" if nfe < 10 else "full"]


@pytest.mark.parametrize(("k", "gap", "nfe"), [(1, 4.9, 22), (1, 7.4, 11), (2, 4.9, 11), (4, 4.9, 6)])
def test_prophet_counts_the_current_step_as_its_code_does(k, gap, nfe):
    """32 tokens: the last phase begins at the 22nd step of one token each, for 22 / 32 >= .67 > 21 / 32."""
    assert int(run(sharp(gap, 32), 32, TopK(k), Prophet()).nfe[0]) == nfe


def test_prophet_looks_at_a_region():
    gaps = [0.1] * 4 + [9.0, 9.0] + [0.1] * 2
    assert int(run(sharp(gaps, 8), 8, None, Prophet(region=(4, 6))).nfe[0]) == 1
    assert int(run(sharp(gaps, 8), 8, None, Prophet(region=(3, 6))).nfe[0]) > 1  # a mean of 6
    assert int(run(sharp(gaps, 8), 8, None, Prophet()).nfe[0]) > 1
    shifted = sharp([9.0, *gaps], 9)
    assert int(run(shifted, 8, None, Prophet(region=(4, 6)), prompt=(1,)).nfe[0]) == 1
    assert run(sharp(0.1, 8), 8, None, Prophet(region=(20, 22))).reasons == ["full"]


def test_prophet_fills_masks_only_and_all_blocks():
    """What was drawn and committed stays, likely or not."""
    f = sharp(7.6, 8)
    out = run(f, 8, TopK(3), Prophet(), block_schedule={"name": "semi_ar", "length": 4}, sampling=TokenSampling(50.0))
    assert int(out.nfe[0]) == 1
    assert out.commit_step[0].tolist() == [1] * 8
    likely = [1 + i % 7 for i in range(8)]
    assert out.text(0).tolist()[3:] == likely[3:]
    assert out.text(0).tolist() != likely


@pytest.mark.parametrize("stops", [(EOS(), Prophet()), (Prophet(), EOS())])
def test_a_stop_token_that_is_filled_in_ends_the_text(stops):
    f = sharp(8.0, 6, [1, 2, STOP, 4, STOP, 6])
    out = run(f, 6, None, *stops)
    assert out.text(0).tolist() == [1, 2, STOP]
    assert out.reasons == ["prophet"]
    assert run(f, 6, None, Prophet()).text(0).tolist() == [1, 2, STOP, 4, STOP, 6]


def test_prophet_on_tokens_that_depend_on_one_another_errs():
    """One of nine items is replaced: the likeliest item everywhere is no text of the joint, whatever the gap."""
    joint = replace_joint(9)
    out = run(joint, 9, None, Prophet(gaps=(2.0, 2.0, 2.0)))
    assert int(out.nfe[0]) == 1
    assert not (out.tokens[0] == joint.support).all(-1).any()


# A guess that no longer changes


@pytest.mark.parametrize(("stable", "nfe"), [(0, 1), (1, 2), (3, 4)])
def test_adaptive_waits_for_a_stable_guess(stable, nfe):
    out = run(sharp(12.0, 8), 8, None, Adaptive(stable))
    assert int(out.nfe[0]) == nfe
    assert out.text(0).tolist() == [1 + i % 7 for i in range(8)]
    assert out.reasons == ["adaptive"]


def test_adaptive_counts_each_row_s_own_places():
    """Rows of other lengths: what lies behind a text never changes, nor does it have to."""
    how = Decoding(TopK(1), stopping_rules=(Adaptive(1),))
    assert decode(sharp(12.0, 9), [[1], [], [3]], [8, 3, 5], how).nfe.tolist() == [2, 2, 2]


def test_adaptive_waits_for_certainty():
    f = sharp(6.0, 8)
    entropy = float(-(f.table[0, :12].exp() * f.table[0, :12]).sum())
    assert int(run(f, 8, None, Adaptive(1, entropy * 1.001)).nfe[0]) == 2
    assert int(run(f, 8, None, Adaptive(1, entropy * 0.999)).nfe[0]) == 8


def test_adaptive_is_reset_by_another_guess():
    """Noise changes its mind at every step."""
    out = run(Noisy(eos_token_ids=(STOP,)), 8, None, Adaptive(1, 99.0))
    assert out.reasons == ["full"]
    assert run(Noisy(eos_token_ids=(STOP,)), 8, None, Adaptive(0, 99.0)).reasons == ["adaptive"]


# What all of them keep to

STOPS = {"eos": EOS(), "eotp": EoTP(0.1), "prophet": Prophet((1.0, 0.5, 0.2)), "adaptive": Adaptive(0, 1.9)}


def test_every_stop_is_accounted_for():
    assert set(STOPS) == set(names("samplers.stopping_rules"))


@pytest.mark.parametrize(
    ("policy", "sync_every"), [(TopK(1), 1), (Threshold(0.5), 4), (TopK(3, "random"), 4)], ids=repr
)
@pytest.mark.parametrize("name", STOPS)
def test_a_row_stops_by_itself(name, policy, sync_every):
    prompts, lengths, seeds = [[1, 2], [], [3] * 5, [4]], [12, 7, 9, 1], [5, 6, 7, 8]
    how = Decoding(policy, {"name": "semi_ar", "length": 4}, stopping_rules=(STOPS[name],), sampling=TokenSampling(0.7))
    f = Noisy(eos_token_ids=(STOP, 2), scale=6.0)
    together = decode(f, prompts, lengths, how, seed=seeds, sync_every=sync_every)
    early = 0
    for i in range(4):
        alone = decode(f, prompts[i : i + 1], lengths[i : i + 1], how, seed=seeds[i : i + 1])
        assert torch.equal(together.text(i), alone.text(0))
        assert int(together.nfe[i]) == int(alone.nfe[0])
        assert together.reasons[i] == alone.reasons[0]
        assert not (together.text(i) == f.mask_token_id).any()
        early += together.reasons[i] != "full" or len(together.text(i)) < lengths[i]
    assert early


def test_stops_that_look_at_the_whole_text_need_it_computed():
    with pytest.raises(UserError, match="looks at the whole text"):
        Decoding(kv_plan="dual", stopping_rules=(Prophet(),))
    Decoding(kv_plan="dual", stopping_rules=(EoTP(whole_text=False),))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EoTP(1.5),
        lambda: Prophet(until=(0.7, 0.3)),
        lambda: Prophet(region=(5, 5)),
        lambda: Adaptive(-1),
        lambda: Adaptive(entropy=float("nan")),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(UserError):
        make()
