"""TextPipeline and `gen decode`: words in, words out, whatever the batch; and what is said to wrong requests."""

import json

import numpy
import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import override
from gen.models.text import Text
from gen.text.decoding import Decoding, TokenSampling
from gen.text.pipeline import TextPipeline
from gen.text.tokenizers.words import Words
from gen.training.recipes.lists import lists

WORDS = Words(tuple("abcdefgh"))
HOW = Decoding(policy={"name": "topk", "k": 2}, sampling=TokenSampling(temperature=1.0))


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    spec = Text(
        vocab_size=10, mask_token_id=9, eos_token_ids=(8,), length=24, width=16, depth=2, heads=2, tokenizer=WORDS
    )
    return TextPipeline(spec.build().double().eval(), WORDS, HOW, length=24)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A list model that has hardly learnt."""
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 2, "batch_size": 4}
    quiet = {"sample_every": 0, "validate_every": 0, "save_every": 0}
    folder = tmp_path_factory.mktemp("runs") / "lists"
    gen.train(override(lists(), small | quiet), folder, quiet=True)
    return folder


def test_a_text_depends_on_its_prompt_its_seed_and_its_place_alone(pipeline):
    prompts = ["a b c", "d", "e f g h a b", ""]
    whole = pipeline.generate(prompts, [7, 9, 4, 12], seed=3)
    parts = pipeline.generate(prompts, [7, 9, 4, 12], seed=3, batch_size=3, sync_every=3)
    assert whole.texts == parts.texts
    assert len({tuple(t.split()) for t in pipeline.generate(["a"] * 6, 8).texts}) > 1
    assert whole.texts != pipeline.generate(prompts, [7, 9, 4, 12], seed=4).texts


def test_ids_and_words_are_one_and_the_counts_add_up(pipeline):
    made = pipeline.generate("a b", 8, seed=1, stopping_rules=())
    assert made.texts == pipeline.generate([0, 1], 8, seed=1, stopping_rules=()).texts
    assert made.texts == pipeline.generate(torch.tensor([0, 1]), 8, seed=1, stopping_rules=()).texts
    assert (made.tokens, made.nfe, made.tokens_per_forward, made.reasons) == (8, 4.0, 2.0, ["full"])


def test_a_text_ends_before_its_stop_token(pipeline):
    assert pipeline.text([0, 1, 8, 2, 9]) == "a b"


def test_what_is_given_replaces_what_the_model_has(pipeline):
    how = pipeline.plan(policy="threshold", temperature=0.5, block_length=4, cfg_scale=1.0)
    assert (how.sampling.temperature, how.block_schedule.length, how.cfg_scale) == (0.5, 4, 1.0)
    assert type(how.policy).__name__ == "Threshold" and pipeline.plan() == HOW
    with pytest.raises(UserError, match=r"unknown polcy\. Allowed: policy, block_schedule"):
        pipeline.plan(polcy="topk")
    with pytest.raises(UserError, match="Whole has no blocks of a length"):
        pipeline.plan(block_schedule="whole", block_length=3)
    assert pipeline.plan(stopping_rules="eos", sampling={"temperature": 0.5}) == pipeline.plan(
        stopping_rules=["eos"], temperature=0.5
    )
    assert pipeline.plan(sampling={"top_k": 2}, temperature=0.5).sampling == TokenSampling(0.5, top_k=2)
    for wrong in ({"sampling": 3}, {"cfg_scale": "much"}, {"suppress_tokens": 0}, {"block_length": 2.5}):
        with pytest.raises(UserError, match=r"got .*, expected"):
            pipeline.plan(**wrong)


def test_prompts_are_strings_or_ids_in_any_wrapping(pipeline):
    made = pipeline.generate(["a b", "c d"], 6, seed=1).texts
    ids = [[0, 1], [2, 3]]
    for prompts in (ids, torch.tensor(ids), numpy.array(ids), (p for p in ids), ("a b", torch.tensor([2, 3]))):
        assert pipeline.generate(prompts, 6, seed=1).texts == made
    for prompts in (numpy.array([0, 1]), list(numpy.array([0, 1])), torch.tensor([0, 1])):
        assert pipeline.generate(prompts, 6, seed=1).texts == made[:1]


@pytest.mark.parametrize("wrong", [None, 5, [None], [[0.5]], [1.5], torch.tensor([[0.5]]), torch.tensor(1)], ids=str)
def test_other_prompts_are_refused(pipeline, wrong):
    with pytest.raises(UserError, match=r"generate: prompts = .*; a string or ids") as caught:
        pipeline.generate(wrong)
    assert "\n" not in str(caught.value)


def test_wrong_numbers_are_refused(pipeline):
    with pytest.raises(UserError, match="no prompts"):
        pipeline.generate([])
    with pytest.raises(UserError, match="stream writes after one prompt, and 2 are given"):
        next(pipeline.stream(["a", "b"]))
    for batch_size in (0, -1, 2.5):
        with pytest.raises(UserError, match=r"batch_size(: got .*, expected a whole number| = .*; it must be in)"):
            pipeline.generate("a", batch_size=batch_size)
    for length in ([3], [3, 4, 5]):
        with pytest.raises(UserError, match="for 2 prompts"):
            pipeline.generate(["a", "b"], length, batch_size=1)


def test_a_text_that_does_not_fit_is_refused_and_without_a_length_it_fits(pipeline):
    with pytest.raises(
        UserError,
        match=r"prompt 1 has 2 tokens and its text may have 23: together more than the 24.*ask for at most 22",
    ):
        pipeline.generate("a b", 23)
    assert len(pipeline.generate("a b", stopping_rules=()).texts[0].split()) <= 22


def test_a_stream_ends_in_what_generate_writes(pipeline):
    steps = list(pipeline.stream("a b", 8, seed=5, stopping_rules=()))
    assert [sum(v is None for v in step.committed) for step in steps] == [6, 4, 2, 0]
    assert [step.text.count("·") for step in steps][-1] == 0
    assert all(v is None or v == g for step in steps for v, g in zip(step.committed, step.guess, strict=True))
    made = pipeline.generate("a b", 8, seed=5, stopping_rules=()).texts[0]
    assert steps[-1].text == pipeline.text(steps[-1].guess) == made


def test_a_run_is_loaded_and_decoded(run, capsys):
    loaded = gen.load(run)
    assert isinstance(loaded, TextPipeline) and loaded.params > 0 and loaded.length == 19
    line = ["decode", str(run), "--prompt", "copy : a b c =", "--policy", "threshold", "--threshold", ".3"]
    assert main([*line, "--block-length", "4", "--trace"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("copy : a b c =") and "@1" in out.out
    assert "tokens per evaluation" in out.err
    assert main([*line, "--stream"]) == 0
    assert "·" not in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to begin with"),
        (["--prompt", "copy : a", "--prompt", "b", "--stream"], "--stream shows one prompt, and 2 are given"),
        (["--prompt", "cpy"], "unknown 'cpy'. Did you mean 'copy'"),
        (["--prompt", "copy", "--policy", "tresholt"], "Did you mean 'threshold'"),
        (["--prompt", "copy", "--policy", "topk", "--threshold", ".9"], "unknown key 'threshold' of TopK"),
        (["--prompt", "copy", "--gen-length", "64"], "together more than the 19"),
        (["--prompt", "copy", "--kv-plan", "block"], "block"),
        (["--prompt", "copy", "--block-schedule", "whole", "--block-length", "4"], "unknown key 'length' of Whole"),
        (
            ["--prompt", "copy", "--block-schedule", "none"],
            "Decoding.block_schedule: got None, expected a name or a spec of `gen list samplers.block_schedules`",
        ),
        (
            ["--prompt", "copy", "--stopping-rules", "[3]"],
            "Decoding.stopping_rules: got 3, expected a name or a spec of `gen list samplers.stopping_rules`",
        ),
        (["--prompt", "copy", "--batch-size", "0"], "--batch-size: 0; it must be in"),
        (["--prompt", "copy", "--suppress-tokens", "[99]"], "suppress_tokens holds 99"),
        (["--prompt", "copy", "--stream", "--trace"], "give one"),
        (["--prompt", "copy", "--gap", "<gap>", "--gap-tokens", "2"], "--gap '<gap>' stands in no prompt"),
        (["--prompt", "copy #", "--gap", "#"], "--gap: give its length, either --gap-tokens N or --gap-max N"),
        (["--prompt", "copy #", "--gap", "#", "--gap-max", "2", "--gap-tokens", "2"], "--gap: give its length"),
        (["--prompt", "copy", "--gap-max", "2"], "--gap-tokens and --gap-max are those of a --gap"),
        (["--prompt", "copy #", "--gap", "#", "--gap-max", "0"], "--gap-max: 0; it must be in"),
        (["--prompt", "copy #", "--gap", "#", "--gap-max", "2", "--gen-length", "3"], "every prompt has gaps"),
    ],
)
def test_wrong_requests_are_one_line(run, capsys, words, said):
    assert main(["decode", str(run), *words]) == 2
    out = capsys.readouterr()
    assert said in out.err and out.err.count("\n") == 1 and not out.out


def test_gaps_of_a_prompt_are_the_characters_that_an_option_names(run, capsys):
    line = ["decode", str(run), "--prompt", "copy : <gap> c = <gap> c", "--gap", "<gap>"]
    assert main([*line, "--gap-tokens", "2", "--trace"]) == 0
    text, trace = capsys.readouterr().out.splitlines()
    words, steps = text.split(), trace.split()
    assert len(words) == 9 and words[:2] == ["copy", ":"] and words[4:6] == ["c", "="] and words[8] == "c"
    assert [step.partition("@")[0] for step in steps] == words[2:]
    assert ["@" in step for step in steps] == [True, True, False, False, True, True, False]
    assert main([*line, "--gap-max", "2", "--stream"]) == 0
    streamed = capsys.readouterr().out.splitlines()
    assert all(shown.endswith(" c") for shown in streamed) and "·" in streamed[0]
    assert main([*line, "--prompt", "copy : a =", "--gap-max", "2", "--gen-length", "3"]) == 0
    assert main(["decode", str(run), "--prompt", "copy : <gap> ="]) == 2
    assert "unknown '<gap>'" in capsys.readouterr().err


def test_options_go_with_one_another_in_any_order(run, capsys):
    line = [
        "decode",
        str(run),
        "--prompt",
        "copy",
        "--block-length",
        "4",
        "--block-schedule",
        "multi",
        "--stopping-rules",
        "none",
    ]
    assert main([*line, "--policy", "threshold", "--policy.threshold", ".9", "--print-config"]) == 0
    how = json.loads(capsys.readouterr().out)
    assert (how["block_schedule"]["name"], how["block_schedule"]["length"], how["stopping_rules"]) == ("multi", 4, [])
    assert how["policy"]["threshold"] == 0.9


def test_prompts_in_a_file_are_text(run, tmp_path, capsys):
    file = tmp_path / "prompts"
    file.write_bytes(b"copy : a =\n\nsort : b a =\n")
    assert main(["decode", str(run), "--prompts", str(file), "--gen-length", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    file.write_bytes(b"\xff\n")
    assert main(["decode", str(run), "--prompts", str(file)]) == 2
    assert "line 1 is no UTF-8 text" in capsys.readouterr().err
    file.write_bytes("\ufeffcopy : a =\r\ncopy :\fa\u2028=\ncopy : a =".encode())
    assert main(["decode", str(run), "--prompts", str(file), "--gen-length", "3", "--trace"]) == 0
    out = capsys.readouterr().out.split("\n")
    assert [line.partition("=")[0] for line in out[:3]] == ["copy : a ", "copy :\fa\u2028", "copy : a "]
    assert len({line.partition("=")[2] for line in out[:3]}) == 1 and len(out) == 7


def test_pictures_are_not_asked_of_a_text_model(run, tmp_path, capsys):
    assert main(["sample", str(run), "--out", str(tmp_path / "x.png")]) == 2
    assert "is a text model, which is decoded, not sampled" in capsys.readouterr().err
