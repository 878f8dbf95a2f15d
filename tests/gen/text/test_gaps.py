"""Gaps in prompts: fixed text before and after, filled exactly, by every part of decoding, in any batch."""

import dataclasses
import itertools
import json
import operator

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import names, override
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.edit import Edit
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoding, TokenSampling
from gen.text.gaps import Gap
from gen.text.loop import decode
from gen.text.pipeline import TextPipeline
from gen.text.tokenizers.bytes import Bytes
from gen.text.tokenizers.words import Words
from gen.text.worlds import JointDistribution, decoded_distribution, replace_joint, shuffle_joint
from gen.training.recipes.text import text as text_recipe
from tests.gen.predictors import Noisy, table_of
from tests.samplers.kv_plans.test_kv import Watched, network

STOP, MASK = 9, 12
PROMPTS = [
    [1, 2, Gap(4), 3, 4, 5],
    [Gap(max=6), 7, 8, Gap(2), 1],
    [3, 1, 4],
    [5, Gap(3), Gap(max=9)],
    [2, Gap(max=5), *[6] * 9],
]
LENGTHS = [None, None, 9, None, None]
SEEDS = [11, 12, 13, 14, 15]


def fixed(prompt):
    """Positions and tokens of a prompt that are given."""
    at, known = 0, {}
    for part in prompt:
        if isinstance(part, Gap):
            at += part.size
        else:
            known[at], at = part, at + 1
    return known


def check_rows(f, how):
    """Every row is the row alone, and what is given stays."""
    together = decode(f, PROMPTS, LENGTHS, how, seed=SEEDS)
    mixed = decode(f, PROMPTS[::-1], LENGTHS[::-1], how, seed=SEEDS[::-1], sync_every=3)
    for i, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        alone = decode(f, [prompt], length, how, seed=SEEDS[i : i + 1])
        n = int(alone.text_end[0])
        for other, row in ((together, i), (mixed, 4 - i)):
            for name in ("tokens", "gap_start", "commit_step", "confidence"):
                assert getattr(other, name)[row, :n].equal(getattr(alone, name)[0, :n]), name
            for name in ("text_end", "nfe", "computed", "nfe_full"):
                assert getattr(other, name)[row] == getattr(alone, name)[0], name
            assert other.reasons[row] == alone.reasons[0]
        assert not (alone.text(0) == f.mask_token_id).any()
        assert all(int(alone.tokens[0, k]) == v for k, v in fixed(prompt).items() if k < n)
        assert n == sum(p.size if isinstance(p, Gap) else 1 for p in prompt) + (length or 0) or n - 1 not in fixed(
            prompt
        )
        assert (alone.commit_step[0, [*fixed(prompt)]] == -1).all()
    return together


POLICIES = [name for name in names("samplers.decoding_policies") if name != "learned"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_with_gaps_is_the_row_alone_by_every_policy(policy):
    spec = {"name": policy, "steps": 6} if policy in ("ancestral", "dream") else policy
    for schedule in ("whole", SemiAR(5, sub=2)):
        check_rows(Noisy(eos_token_ids=(STOP,)), Decoding(spec, schedule, sampling=TokenSampling(0.8, top_p=0.9)))


@pytest.mark.parametrize("schedule", names("samplers.block_schedules"))
def test_windows_of_every_schedule_run_over_the_gaps(schedule):
    spec = {"name": schedule, **({} if schedule == "whole" else {"length": 3})}
    check_rows(Noisy(eos_token_ids=(STOP,)), Decoding(Threshold(0.3), spec))


@pytest.mark.parametrize("rules", [(), ("eos",), ("eotp", "eos"), ("prophet", "eos"), ("adaptive",)], ids=str)
def test_a_row_with_gaps_is_the_row_alone_by_every_rule(rules):
    parts = {"eotp": {"name": "eotp", "threshold": 0.1}, "prophet": {"name": "prophet", "gaps": [1.0, 0.5, 0.2]}}
    how = Decoding(TopK(1), SemiAR(4), stopping_rules=[parts.get(rule, rule) for rule in rules])
    check_rows(Noisy(eos_token_ids=(STOP, 2), scale=6.0), dataclasses.replace(how, cfg_scale=float("eos" in rules)))


PLANS = [None, "prefix", {"name": "prefix", "refresh": 2}, "dual", {"name": "vicinity", "near": 2, "warmup": 1}]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_caches_of_full_attention_take_gaps(plan, shift):
    """Rows as alone; fixed text behind a gap is computed at a block's first step, which is exact for one layer."""
    small = {"vocab_size": 13, "mask_token_id": MASK, "eos_token_ids": (STOP,), "shift": shift}
    how = {"policy": Threshold(0.3), "block_schedule": SemiAR(4)}
    check_rows(network(**small), Decoding(**how, kv_plan=plan))
    net = network(**small, depth=1)
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        watched = Watched(net)
        cached = decode(watched, [prompt], length, Decoding(**how, kv_plan=plan, stopping_rules=()))
        exact = decode(net, [prompt], length, Decoding(**how, stopping_rules=()))
        assert cached.tokens.equal(exact.tokens) and cached.commit_step.equal(exact.commit_step)
        assert max([float(e.max()) for e in watched.errors], default=0.0) < 1e-12
    if plan is not None:
        deep, always = network(**small), {**(plan if isinstance(plan, dict) else {"name": plan}), "refresh": 1}
        a, b = (decode(deep, PROMPTS, LENGTHS, Decoding(**how, kv_plan=p)) for p in (None, always))
        assert a.tokens.equal(b.tokens) and a.computed.equal(b.computed)


@pytest.mark.parametrize("plan", [None, "block", "sub_block"])
def test_block_causal_models_fill_gaps_whose_suffix_lies_in_their_block(plan):
    net = network(block_size=6, vocab_size=13, mask_token_id=MASK, eos_token_ids=(STOP,))
    how = [Decoding(Threshold(0.3), SemiAR(4), kv_plan=p) for p in (plan, None)]
    prompts = [[1, 2, Gap(2), 3], [*[4] * 7, Gap(max=3), 1, 2, Gap(max=12)][:10], [1] * 6, [*[5] * 6, Gap(4), 7, 8]]
    a, b = (decode(net, prompts, [None, None, 8, None], h, seed=SEEDS[:4]) for h in how)
    assert a.tokens.equal(b.tokens) and a.commit_step.equal(b.commit_step)
    alone = decode(net, prompts[3:], None, how[0], seed=SEEDS[3:4])
    assert alone.text(0).equal(a.text(3)) and a.text(3)[-2:].tolist() == [7, 8]
    with pytest.raises(
        UserError, match=r"prompt 1: text at token 9 follows a gap at token 2.*in blocks of 6"
    ) as caught:
        decode(net, [[1, 2, Gap(7), 3]], None, how[0])
    assert "\n" not in str(caught.value)


def test_a_last_gap_with_a_maximum_is_the_ordinary_text():
    f, how = Noisy(eos_token_ids=(STOP,)), Decoding(TopK(1, "random"), SemiAR(4), sampling=TokenSampling(0.9))
    for prompt, n in (([1, 2], 9), ([], 14), ([4] * 7, 4)):
        a, b = decode(f, [prompt], n, how, seed=3), decode(f, [[*prompt, Gap(max=n)]], None, how, seed=3)
        assert a.tokens.equal(b.tokens) and a.commit_step.equal(b.commit_step) and a.reasons == b.reasons


def test_an_end_of_text_token_ends_its_gap():
    """What follows in the gap is none of the text, and costs nothing; the suffix stays in its position."""
    f = table_of([1, 2, STOP, 4, 5, 6, 7, 3], [0.5, 0.6, 0.9, 0.4, 0.3, 0.2, 0.2, 0.5], eos_token_ids=(STOP,))
    out = decode(f, [[Gap(max=6), 8, Gap(1)]], None, Decoding(TopK(1), "whole"))
    assert out.tokens[0].tolist() == [1, 2, STOP, STOP, STOP, STOP, 8, 3]
    assert out.text(0).tolist() == [1, 2, STOP, 8, 3]
    assert (int(out.nfe[0]), out.reasons) == (4, ["eos"])
    assert f.contexts[-1][0].tolist() == [MASK, 2, STOP, MASK, MASK, MASK, 8, 3]
    cut = decode(f, [[Gap(max=6), 8]], None, Decoding(TopK(1), "whole", stopping_rules=()))
    assert cut.text(0).tolist() == [1, 2, STOP, 4, 5, 6, 8]


@pytest.mark.parametrize("policy", [TopK(1), Edit(0.1, 0.0)], ids=repr)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_gap_of_a_fixed_length_is_all_text(policy, temperature):
    f = table_of([STOP, STOP, 3], [0.9, 0.8, 0.6], eos_token_ids=(STOP,))
    how = Decoding(policy, "whole", sampling=TokenSampling(temperature))
    for guidance in (0.0, 1.0):
        how = Decoding(policy, "whole", sampling=how.sampling, cfg_scale=guidance)
        out = decode(f, [[Gap(2), 1, Gap(max=2)]] * 20, None, how)
        assert not (out.tokens[:, :3] == STOP).any()
        assert out.confidence.isfinite().all()


JOINT = JointDistribution(
    torch.tensor([[0, 1, 2, 0], [0, 2, 2, 1], [1, 1, 2, 1], [1, 0, 2, 0], [2, 1, 2, 0]]),
    torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64),
    3,
)


@pytest.mark.parametrize("joint", [JOINT, replace_joint(4), shuffle_joint(4)], ids=["own", "replace", "shuffle"])
@pytest.mark.parametrize("score", ["confidence", "margin", "entropy", "left_to_right"])
def test_one_token_at_a_time_is_the_exact_conditional_wherever_the_gaps_are(joint, score):
    text = joint.support[1].tolist()
    for hidden in itertools.product((True, False), repeat=4):
        if not any(hidden):
            continue
        given = [joint.mask_token_id if h else v for h, v in zip(hidden, text, strict=True)]
        made = decoded_distribution(joint, TopK(1, score), given=given)
        assert made.total_variation < 1e-12 and abs(made.kl) < 1e-12
        assert made.nfe == pytest.approx(sum(hidden))
    at_once = decoded_distribution(shuffle_joint(4), TopK(3), given=[4, 1, 4, 4])
    assert at_once.success == pytest.approx(6 / 27) and at_once.nfe == 1
    with pytest.raises(UserError, match="no text has the tokens"):
        decoded_distribution(joint, TopK(1), given=[0, 0, 0, 0])


def test_the_loop_draws_from_the_exact_conditional():
    n, prompt = 4000, [Gap(1), 1, Gap(2)]
    exact = JOINT.conditional([3, 1, 3, 3])
    out = decode(JOINT, [prompt] * n, None, Decoding(TopK(1), "whole", sampling=TokenSampling(1.0)), seed=1)
    share = torch.tensor([(out.tokens == text).all(1).sum() / n for text in JOINT.support], dtype=torch.float64)
    assert share.sum() == 1 and exact.gt(0).sum() == 3
    assert ((share - exact).abs() <= 4 * (exact * (1 - exact) / n).sqrt()).all()


@pytest.mark.parametrize(
    ("prompts", "length", "match"),
    [
        ([[1, Gap(2)]], 3, "length = 3, and every prompt has gaps"),
        ([[1, Gap(2)], [1]], [3, 3], "prompt 1 has gaps, which say their own lengths"),
        ([[1, Gap(2)], [1]], None, "length = None; a whole number"),
        ([[1, Gap(2), MASK]], None, f"prompt 1 holds {MASK}"),
        ([[1, Gap(2), "a"]], None, "decode: prompts"),
    ],
)
def test_wrong_prompts_with_gaps_are_refused(prompts, length, match):
    with pytest.raises(UserError, match=match) as caught:
        decode(Noisy(), prompts, length)
    assert "\n" not in str(caught.value)


def test_a_number_is_the_length_of_the_prompts_without_gaps():
    out = decode(Noisy(), [[1, Gap(2), 3], [1]], 5)
    assert out.text_end.tolist() == [4, 6] and (out.gap_start >= 0).sum(1).tolist() == [2, 5]


@pytest.mark.parametrize("wrong", [(None, None), (3, 4), (0, None), (None, -1), (2.5, None)])
def test_a_gap_has_one_length(wrong):
    with pytest.raises(UserError):
        Gap(*wrong)


# Words


def pipeline_of(text, tokenizer, **how):
    """A model that predicts one text, each token at its position, in an order of its own."""
    ids = tokenizer.encode(text) if isinstance(text, str) else text
    sure = [0.9 - 0.7 * (k * 7 % len(ids)) / len(ids) for k in range(len(ids))]
    net = table_of(ids, sure, words=tokenizer.vocab_size - 1, eos_token_ids=tokenizer.eos_token_ids)
    assert net.mask_token_id == tokenizer.mask_token_id
    return TextPipeline(net, tokenizer, Decoding(**{"policy": "topk", "block_schedule": "whole"} | how))


def test_strings_with_gaps_are_filled():
    model = pipeline_of("def f(x): return x²", Bytes())
    made = model.generate(["def f(", gen.Gap(3), "", " return ", gen.Gap(max=3)])
    assert made.texts == ["x): return x²"] and made.documents == ["def f(x): return x²"]
    assert made.fills == [["x):", "x²"]] and made.tokens == 6
    both = model.generate(["def", ["def f(", Gap(3), list(b" return")]], [4, None])
    assert both.documents == ["def f(x", "def f(x): return"] and both.fills[0] == both.texts[:1] == [" f(x"]
    ended = pipeline_of([*b"ab", 256, 256, 256, *b"yz"], Bytes()).generate([Gap(max=5), "yz"])
    assert ended.fills == [["ab"]] and ended.documents == ["abyz"] and ended.reasons == ["eos"]
    empty = pipeline_of([256] * 5, Bytes()).generate(["é", Gap(max=3), "z"])
    assert (empty.fills, empty.documents, empty.texts) == ([[""]], ["éz"], ["z"])


@pytest.mark.parametrize("rules", [("eos",), ()])
def test_streams_show_the_suffix_in_its_position_and_no_broken_characters(rules):
    model = pipeline_of([*"ñ🙂".encode(), 256, 256, *"é!".encode()], Bytes(), stopping_rules=rules)
    prompt = ["", Gap(max=8), "é!"]
    steps = list(model.stream(prompt))
    assert all(step.text.endswith("é!") and "\ufffd" not in step.text for step in steps)
    assert "·" in steps[0].text and len({len(step.committed) for step in steps[:2]}) == 1
    assert steps[-1].text == model.generate(prompt).texts[0] == "ñ🙂é!"


def test_an_edit_writes_what_is_marked_anew_and_nothing_else():
    model = pipeline_of("one fine day, naïve", Bytes())
    made = model.edit("one grim day, naïve", "grim")
    assert made.documents == ["one fine day, naïve"] and made.fills == [["fine"]] and made.nfe == 4
    assert model.edit("one grim day, nazzve", [(4, 8), (16, 18)]).documents == ["one fine day, naïve"]
    again = model.edit(made, (0, 3))
    assert again.documents == made.documents and again.fills == [["one"]]
    whole = model.edit("one grim day, naïve", ["one", " grim"], gap=Gap(max=8))
    assert whole.fills == [["one fine"]]  # neighbours are one gap
    words = pipeline_of("b c a", Words(("a", "b", "c"))).edit("b b a", (2, 3))
    assert words.documents == ["b c a"]


@pytest.mark.parametrize(
    ("text", "spans", "match"),
    [
        ("one day", "no", "occurs 0 times"),
        ("one one", "one", "occurs 2 times"),
        ("one", (2, 2), r"the span \(2, 2\) of a text of 3 characters"),
        ("one", [(0, 9)], "the span"),
        ("one", [], "no spans"),
        ("one", [3], "a span is 3"),
        (["one", "two"], (0, 1), "edit takes one text, and 2 are given"),
        (["one", Gap(2)], (0, 1), "a text without gaps"),
    ],
)
def test_wrong_edits_are_refused(text, spans, match):
    with pytest.raises(UserError, match=match) as caught:
        pipeline_of("one day", Bytes()).edit(text, spans)
    assert "\n" not in str(caught.value)


def test_gaps_that_do_not_fit_the_model_are_refused():
    model = TextPipeline(Noisy(), None, length=8)
    assert model.generate([1, Gap(max=7)]).tokens <= 7
    with pytest.raises(
        UserError, match=r"prompt 1 has . tokens and its gaps may have .: together more than the 8.*; ask for at most"
    ):
        model.generate([1, Gap(6), 2, 3])


@pytest.mark.slow
def test_a_model_trained_on_gaps_fills_what_the_rest_says(tmp_path):
    """Texts such as "ab=ba", whose halves say each other: gaps in one half; measured 36 right of 36."""
    lines = ["".join(p) + "=" + "".join(p[::-1]) for p in itertools.permutations("abc", 2)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines * 40))
    data = {"path": str(tmp_path / "lines.jsonl"), "length": 5}
    spans = {"infill": "spans", "infill.share": 0.5, "infill.mean": 1.5}
    small = {"width": 32, "depth": 2, "heads": 2, "block_size": None}
    changes = {f"data.{key}": value for key, value in (data | spans).items()}
    changes |= {f"model.{key}": value for key, value in small.items()} | {"objective": "llada", "steps": 600}
    changes |= {"batch_size": 32, "schedule.warmup": 20, "sample_every": 0, "validate_every": 0, "save_every": 0}
    gen.train(override(text_recipe(), changes), tmp_path / "run", quiet=True)
    prompts, whole = [], []
    for line, (a, b) in itertools.product(lines, itertools.combinations(range(3), 2)):
        for first in (a, 5 - b):
            parts = line[:first], Gap(b - a), line[first + b - a :]
            prompts.append([part for part in parts if part != ""])
            whole.append(line)
    made = gen.load(tmp_path / "run").generate(prompts, policy="topk", temperature=0)
    right = sum(map(operator.eq, made.documents, whole))
    assert len(whole) == 36 and right >= 33, right
