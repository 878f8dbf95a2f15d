"""Perplexity: a bound on exact worlds, generated text judged by models whose answer is known, and the command."""

import dataclasses
import json
import math

import pytest
import torch

from gen.cli import main
from gen.config.errors import NonFinite, UserError
from gen.data.lists import Lists
from gen.eval.perplexity import judge_texts, perplexity_bound
from gen.models.text import Text
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.text.worlds import JointDistribution, parity_joint

WORDS = ["<bos>", "a", "b", "c", "d"]


def items(*texts, prompt=0):
    return [{"x": torch.tensor(text), "prompt": torch.tensor(prompt)} for text in texts]


def test_an_exact_model_has_the_entropy_of_its_texts():
    joint = parity_joint(4)
    bound = perplexity_bound(joint, items(*joint.support.tolist()))
    assert bound.nats.value == pytest.approx(math.log(8) / 4, abs=1e-12)
    assert bound.bits.value == pytest.approx(0.75)
    assert bound.perplexity.value == pytest.approx(8**0.25)
    assert bound.nats.se == pytest.approx(0, abs=1e-12)
    assert (bound.texts, bound.tokens, bound.monte_carlo, len(bound.blocks)) == (8, 32, 0, 1)
    by_block = perplexity_bound(dataclasses.replace(joint, block_size=3), items(*joint.support.tolist())).blocks
    assert [block.value for block in by_block] == pytest.approx([math.log(2), 0], abs=1e-12)  # the last bit is known


def test_errors_are_of_texts_and_of_masks():
    weight = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    joint = JointDistribution(torch.tensor([[0, 1], [1, 1], [2, 0]]), weight, 3)
    bound = perplexity_bound(joint, items([0, 1], [0, 1], [1, 1], [2, 0]))
    nats = [-math.log(w) for w in (0.7, 0.7, 0.2, 0.1)]
    mean = sum(nats) / 4
    assert bound.nats.value == pytest.approx(mean / 2, abs=1e-12)
    assert bound.nats.se == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in nats) / 3 / 4) / 2)
    assert perplexity_bound(joint, items([0, 1])).nats.se is None
    sampled = perplexity_bound(joint, items([0, 1]), samples=2)
    assert sampled.monte_carlo > 0 or sampled.nats.value == pytest.approx(-math.log(0.7) / 2)
    with pytest.raises(UserError, match="no texts"):
        perplexity_bound(joint, [])


@pytest.mark.parametrize(("block_size", "scored"), [(None, 3), (4, 4)])
def test_a_text_ends_with_its_stop_token_and_a_block_is_filled(block_size, scored):
    text = [0, 1, 2, 2, 2, 2]  # 2 ends a text
    joint = JointDistribution(torch.tensor([text]), torch.ones(1, dtype=torch.float64), 3, 0, (2,), block_size)
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(joint, name)

        def __call__(self, tokens, lengths, positions):
            seen.append(int(lengths.max()))
            return joint(tokens, lengths, positions)

    bound = perplexity_bound(Watched(), items(text))
    assert (bound.tokens, max(seen)) == (3, scored)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A GPT-2 with weights 0, for which all of its five tokens are alike likely."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("judge")
    config = GPT2Config(vocab_size=5, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>").save_pretrained(folder)
    return folder


def test_a_judge_that_knows_nothing_and_text_that_repeats_itself(judge):
    judged = judge_texts(["a b c d", "a a a a a a a", ""], judge, batch_size=2)
    assert judged.perplexity.value == pytest.approx(5)
    assert judged.nats.se == pytest.approx(0, abs=1e-6)
    assert judged.tokens == 11
    assert judged.entropy.value == pytest.approx(math.log(4) / 2)
    assert (judged.texts, judged.judge) == (3, judge.name)
    assert judge_texts(["a b c d", "a a a a a a a", ""], judge, batch_size=1).nats.value == pytest.approx(
        judged.nats.value
    )


@pytest.mark.parametrize("text", ["a b c d a b d c a", "d"])
def test_a_judge_scores_as_transformers_does(judge, tmp_path, text):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=5, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    words = AutoTokenizer.from_pretrained(judge)
    words.save_pretrained(tmp_path)
    ids, nats = words(text)["input_ids"], 0.0
    for a in range(0, len(ids), 5):  # a context holds <bos> and five tokens
        piece = torch.tensor([[0, *ids[a : a + 5]]])
        nats += float(model(piece, labels=piece).loss.detach()) * (piece.shape[1] - 1)
    judged = judge_texts([text, "a b"], tmp_path)
    both = judge_texts(["a b"], tmp_path)
    assert judged.tokens == len(ids) + 2
    assert judged.nats.value * judged.tokens == pytest.approx(nats + both.nats.value * 2, rel=1e-5)


def test_other_folders_are_no_judges(judge, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        judge_texts(["a"], tmp_path)
    for file in judge.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"no tokenizer"):
        judge_texts(["a"], tmp_path)
    for file in judge.iterdir():
        (tmp_path / file.name).write_bytes(b"{}" if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(UserError, match="cannot be read as a causal language model"):
        judge_texts(["a"], tmp_path)
    with pytest.raises(UserError, match="none has a character"):
        judge_texts([""], judge)


def test_the_command_bounds_a_run_and_has_its_texts_judged(judge, monkeypatch, tmp_path, capsys):
    data = Lists(n=100)
    words = data.tokenizer
    settings = {"vocab_size": words.vocab_size, "length": 32, "width": 16, "depth": 1, "heads": 2, "block_size": 4}
    net = Text(**settings, mask_token_id=words.mask_token_id, eos_token_ids=words.eos_token_ids).build().eval()
    pipeline = TextPipeline(net, words, Decoding(), 32, data, name="toy")
    monkeypatch.setattr("gen.pipeline.load", lambda *_: pipeline)
    (tmp_path / "run.json").write_text("{}")
    texts, out = tmp_path / "texts.jsonl", tmp_path / "numbers.json"
    texts.write_text(json.dumps({"text": "a b c"}) + "\n" + json.dumps({"prompt": "a", "response": "b c =  d"}) + "\n")
    words = ["perplexity", str(tmp_path), "-n", "3", "--masks", "4", "--judge", str(judge), "--out", str(out)]
    assert main([*words, "--gen-length", "8"]) == 0, capsys.readouterr().err
    numbers, (first, second) = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    assert numbers["bound"]["texts"] == numbers["judged"]["texts"] == 3
    assert first.startswith("toy: at most ") and "entropy" in second
    assert main([*words[:-4], "--texts", str(texts)]) == 0
    assert "; 2 texts of 9 tokens" in capsys.readouterr().out  # <eos> included
    assert main(["perplexity", str(texts), "--judge", str(judge)]) == 0
    assert "generative perplexity 5.00" in capsys.readouterr().out
    assert main(["perplexity", str(texts)]) == 2
    assert "give --judge FOLDER" in capsys.readouterr().err


def test_what_is_no_number_is_not_reported():
    joint = parity_joint(4)
    with pytest.raises(NonFinite, match="text 1 has no probability"):
        perplexity_bound(joint, items([0, 0, 0, 0], [0, 0, 0, 1]))

    class Broken:
        def __getattr__(self, name):
            return getattr(joint, name)

        def __call__(self, tokens, lengths, positions):
            return joint(tokens, lengths, positions) * math.nan

    with pytest.raises(NonFinite, match="logits are NaN"):
        perplexity_bound(Broken(), items([0, 0, 0, 0]))
