"""The adapter to lm-evaluation-harness: its requests one by one, and three local tasks end to end."""

import json
from types import SimpleNamespace

import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.data.lists import Lists
from gen.eval.harness import harness_model
from gen.eval.likelihood import nll_bounds
from gen.models.text import Text
from gen.text.chat import chat_prompt
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.text.tokenizers.huggingface import HuggingFace

PROMPTS = ["copy : a b =", "reverse : c d e =", "sort : b a ="]


@pytest.fixture(scope="module")
def pipeline():
    words = Lists().tokenizer
    torch.manual_seed(0)
    settings = {"vocab_size": words.vocab_size, "length": 32, "width": 16, "depth": 1, "heads": 2}
    net = Text(**settings, mask_token_id=words.mask_token_id, eos_token_ids=words.eos_token_ids).build().eval()
    return TextPipeline(net, words, Decoding(), 32, Lists(), name="toy")


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_texts_depend_on_their_request_and_end_at_a_stop_string(pipeline):
    model = harness_model()(pipeline, batch_size=2)
    how = {"until": ["\n\n"], "max_gen_toks": 6, "temperature": 1.0, "do_sample": True}
    asked = requests(*((prompt, how) for prompt in PROMPTS))
    texts = model.generate_until(asked)
    alone = [harness_model()(pipeline, batch_size=1).generate_until([one])[0] for one in asked]
    assert texts == alone
    twice = model.generate_until(requests(("copy : a b =", how), ("copy : a b =", how)))
    assert twice[0] == texts[0]
    assert twice[1] != twice[0]  # a repeat is another draw
    assert harness_model()(pipeline, seed=1).generate_until(asked) != texts
    greedy = model.generate_until(requests((PROMPTS[0], {"until": [], "max_new_tokens": 6, "top_p": None})))
    assert greedy == pipeline.generate(PROMPTS[0], 6, temperature=0.0).texts
    words = greedy[0].split()
    cut = model.generate_until(requests((PROMPTS[0], {"until": ["zzz", f" {words[1]}"], "max_gen_toks": 6})))
    assert cut[0] == greedy[0][: greedy[0].find(f" {words[1]}")]


def test_likelihoods_are_bounds_and_greedy_texts_are_said_to_be(pipeline):
    model = harness_model()(pipeline, masks=16)
    greedy = pipeline.generate(PROMPTS[0], 3, policy="topk", stopping_rules=(), block_schedule="semi_ar")
    ids = greedy.decoded[0].text(0).tolist()
    asked = [(PROMPTS[0], " a b"), ("", "c d"), (PROMPTS[1] + " ", "e d c e d c")]
    answers = model.loglikelihood(requests(*asked))
    for (context, text), (value, _) in zip(asked, answers, strict=True):
        prompt, whole = pipeline.encode(context), pipeline.encode(context + text)
        (bound,) = nll_bounds(pipeline.net, [prompt], [whole[len(prompt) :]], samples=10**4)
        assert value == pytest.approx(-bound.nats, abs=1e-4 if len(whole) - len(prompt) < 5 else 3)
    assert [answer for _, answer in model.loglikelihood(requests(*asked[::-1]))] == [a for _, a in answers][::-1]
    assert model.loglikelihood(requests(asked[2]))[0][0] == pytest.approx(answers[2][0], abs=1e-5)
    if not any(v in pipeline.net.eos_token_ids for v in ids):
        assert model.loglikelihood(requests((PROMPTS[0], " " + pipeline.text(ids))))[0][1]
    assert model.monte_carlo.n == len(model.bounds) >= 7
    with pytest.raises(UserError, match="has no token"):
        model.loglikelihood(requests(("a", "")))


def test_long_texts_are_bounded_piece_by_piece(pipeline):
    model = harness_model()(pipeline, masks=4)
    long = " ".join(["a b c d"] * 20)
    rolled = model.loglikelihood_rolling(requests((long,), ("a b",), ("",)))
    assert rolled[0] < rolled[1] < rolled[2] == 0
    assert len(model.bounds) == 4  # of 80 tokens three pieces
    again = harness_model()(pipeline, masks=4, batch_size=3).loglikelihood_rolling(requests((long,)))
    assert again[0] == pytest.approx(rolled[0], rel=1e-5)


def test_wrong_settings_are_refused(pipeline):
    with pytest.raises(UserError, match="batch_size"):
        harness_model()(pipeline, batch_size="many")
    with pytest.raises(UserError, match="polizy"):
        harness_model()(pipeline, polizy="topk")
    with pytest.raises(UserError, match="no chat template"):
        harness_model()(pipeline).apply_chat_template([{"role": "user", "content": "a"}])


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Three task files and their questions: generation, multiple choice, perplexity of whole texts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of pip list
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = folder / "questions.jsonl"
    questions = [("copy : a b =", "a b", "b a"), ("copy : c d =", "c d", "d c"), ("copy : e f =", "e f", "f e")]
    lines = [{"q": q, "a": a, "choices": [a, b], "text": f"{q} {a}"} for q, a, b in questions]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    exact = 'metric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 4}'
    both = "doc_to_choice: choices\nmetric_list: [{metric: acc}]"
    rolled = "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]"
    for name, kind, text, target, more in [
        ("own_exact", "generate_until", "{{q}}", "{{a}}", exact),
        ("own_choice", "multiple_choice", "{{q}}", "0", both),
        ("own_rolling", "loglikelihood_rolling", "", "{{text}}", rolled),
    ]:
        content = TASK.format(name=name, file=file, kind=kind, text=text, target=target, more=more)
        (folder / f"{name}.yaml").write_text(content)
    return folder


def test_three_local_tasks_end_to_end(pipeline, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gen.pipeline.load", lambda *_: pipeline)
    monkeypatch.setattr("gen.cli.lm_eval.settings", lambda args: pipeline.decoding)
    out = tmp_path / "results.json"
    words = ["lm-eval", str(tmp_path), "--tasks", "own_exact,own_choice,own_rolling", "--include", str(tasks)]
    assert main([*words, "--masks", "16", "--bootstrap-iters", "10", "--out", str(out)]) == 0, capsys.readouterr().err
    whole = json.loads(out.read_text())
    results = whole["results"]
    assert whole["config"]["masks"] == 16 and whole["config"]["monte_carlo"]["n"] == 9
    assert 0 <= results["own_exact"]["exact_match,none"] <= 1
    assert 0 <= results["own_choice"]["acc,none"] <= 1
    assert results["own_rolling"]["word_perplexity,none"] > 1
    printed = capsys.readouterr().out
    assert "mean Monte Carlo error" in printed
    assert "own_rolling" in printed
    nats = -sum(harness_model()(pipeline, masks=16).loglikelihood_rolling(
        requests(*((f"copy : {a} {b} = {a} {b}",) for a, b in ("ab", "cd", "ef")))
    ))  # fmt: skip
    assert results["own_rolling"]["bits_per_byte,none"] == pytest.approx(nats / (3 * 16) / 0.6931472, rel=1e-4)


def test_the_harness_makes_the_model_from_its_own_arguments(pipeline, tasks, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    harness_model()
    loaded = []
    monkeypatch.setattr("gen.pipeline.load", lambda *given: loaded.append(given) or pipeline)
    results = simple_evaluate(
        "gen", "run=runs/own,policy=threshold,policy.threshold=0.5,block_length=4,seed=3,gen_length=3", ["own_exact"],
        batch_size="auto", device="cuda:0", task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert [(str(given[0]), given[2]) for given in loaded] == [("runs/own", device)]
    config = results["config"]
    assert config["decoding"]["policy"]["threshold"] == 0.5
    assert config["decoding"]["block_schedule"]["length"] == 4
    assert (config["run"], config["seed"], config["gen_length"], config["monte_carlo"]) == ("toy", 3, 3, None)
    assert all(len(sample["resps"][0][0].split()) <= 3 for sample in results["samples"]["own_exact"])


@pytest.mark.slow  # the harness reads its 14,000 task files
def test_unknown_tasks_are_refused(pipeline, tasks, monkeypatch, capsys):
    monkeypatch.setattr("gen.pipeline.load", lambda *_: pipeline)
    monkeypatch.setattr("gen.cli.lm_eval.settings", lambda args: pipeline.decoding)
    assert main(["lm-eval", str(tasks), "--tasks", "own_exact,own_other", "--include", str(tasks)]) == 2
    assert "no task 'own_other'" in capsys.readouterr().err


@pytest.fixture
def chatting(tmp_path):
    """A pipeline whose tokenizer's folder has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(letters, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.add_special_tokens(["<|end|>", "<|mask|>"])
    words.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}assistant:{% endif %}")
    words = HuggingFace(str(tmp_path / "tokenizer.json"), "<|mask|>", ("<|end|>",))
    settings = {"vocab_size": 258, "length": 200, "width": 8, "depth": 1, "heads": 1}
    net = Text(**settings, mask_token_id=words.mask_token_id, eos_token_ids=words.eos_token_ids).build().eval()
    return TextPipeline(net, words, Decoding(), 200)


def test_a_chat_template_names_special_tokens_and_messages_do_not(chatting, monkeypatch):
    model, asked = harness_model()(chatting), []
    plain = "user:hi <|end|>"
    messages = [{"role": "user", "content": "hi <|end|>"}]
    context = model.apply_chat_template(messages)
    monkeypatch.setattr("gen.text.pipeline.decode", lambda net, ids, *_, **__: asked.extend(ids) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate_until(requests((context, {"max_gen_toks": 4})))
    assert asked == [chat_prompt(chatting.tokenizer, messages)]
    assert asked[0].count(chatting.net.eos_token_ids[0]) == 1
    assert model.chat_template(True).endswith("{% endif %}") and model.chat_template(False) == ""
    with pytest.raises(ZeroDivisionError):
        harness_model()(chatting).generate_until(requests((plain, {"max_gen_toks": 4})))
    assert chatting.net.eos_token_ids[0] not in asked[1]
    with pytest.raises(UserError, match=r"U\+E000"):
        model.apply_chat_template([{"role": "user", "content": "\ue000"}])
