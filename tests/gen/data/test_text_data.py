"""Texts as data: windows of files, lists made on demand, and short runs that train on them."""

from __future__ import annotations

import dataclasses
import json
import random
from types import SimpleNamespace

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import build, override, spec_of
from gen.data.lists import FIXED, TASKS, Lists
from gen.data.text import Text
from gen.diffusion.noise import training_noise
from gen.text.contracts import positions_between
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.text.tokenizers.huggingface import HuggingFace
from gen.training.checks import check_sampler
from gen.training.log import read_metrics
from gen.training.objectives import Batch
from gen.training.objectives.lib.masked import TokenBatch, token_batch
from gen.training.recipes.lists import lists
from gen.training.recipes.lists_blocks import lists_blocks
from gen.training.run import Run, Sampler, run_from, run_spec
from gen.training.trainer import train
from tests.gen.training.test_trainer import same, weights

# Windows of text


def words(item, source):
    """Prompt, text and padding of an item, as strings of the tokeniser."""
    x, prompt, stop = item["x"].tolist(), int(item["prompt"]), source.tokenizer.eos_token_ids[0]
    length = int(item["length"]) if "length" in item else min(len(x), x.index(stop) + 1 if stop in x else len(x))
    return [x[:prompt], x[prompt:length], x[length:]], source.tokenizer


def test_windows_put_together_are_the_text(tmp_path):
    text = "".join(random.Random(0).choices("abc é\n", k=500))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source = Text(str(tmp_path / "a.txt"), length=16, holdout=0.0)
    train_ = source.open("train")
    ids = []
    for i in range(len(train_)):
        item = train_[i]
        assert item["x"].shape == source.shape == (16,) and item["x"].dtype == torch.int64
        (none, here, rest), tokenizer = words(item, source)
        assert none == [] and set(rest) <= {tokenizer.eos_token_ids[0]}
        ids += here
    assert ids[-1] == source.tokenizer.eos_token_ids[0]
    assert source.tokenizer.decode(ids[:-1]) == text


def test_windows_are_held_out_once_and_for_all(tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(97 + i // 26 % 26) + chr(97 + i % 26) for i in range(400)))
    source = Text(str(tmp_path), length=8, holdout=0.2)
    train_, test = source.open("train"), source.open("test")
    rows = [{tuple(data[i]["x"].tolist()) for i in range(len(data))} for data in (train_, test)]
    assert not rows[0] & rows[1] and len(rows[0]) + len(rows[1]) == 101 and len(rows[1]) == 20
    assert source.open("train").fingerprint == train_.fingerprint != test.fingerprint
    assert build("data", json.loads(json.dumps(spec_of(source)))) == source


def test_python_has_a_text_of_its_own():
    source = Text()
    test = source.open("test")
    assert len(test) > 100 and source.vocab_size == source.tokenizer.vocab_size
    (_, here, _), tokenizer = words(test[0], source)
    assert len(tokenizer.decode([i for i in here if i not in tokenizer.eos_token_ids])) > 10


def test_a_folder_a_glob_and_a_file(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.md", "a.txt", "inner/c.txt", "d.py"):
        (tmp_path / name).write_text(name)
    found = {
        ".": ["a.txt", "b.md", "c.txt"],
        "*.txt": ["a.txt"],
        "**/*.txt": ["a.txt", "c.txt"],
        "d.py": ["d.py"],
    }
    for path, expected in found.items():
        given = tmp_path if path == "." else tmp_path / path
        assert [f.name for f in Text(str(given)).text_files()] == expected


def test_prompts_and_responses(tmp_path):
    lines = [{"prompt": "ab", "response": "cde"}, {"text": "xyz"}, {"prompt": "a", "response": "b" * 20, "id": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    source = Text(str(tmp_path / "a.jsonl"), length=8, holdout=0.0)
    with pytest.warns(UserWarning, match="14 tokens are lost at the end of the responses of 1 rows that"):
        data = source.open("train")
    stop = source.tokenizer.eos_token_ids[0]
    encode = source.tokenizer.encode
    assert [words(data[i], source)[0] for i in range(3)] == [
        [encode("ab"), [*encode("cde"), stop], [stop] * 2],
        [[], [*encode("xyz"), stop], [stop] * 4],
        [encode("a"), encode("b" * 7), []],
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is .*object"),
        ('{"prompt": "a"}', 'line 2 has the fields "prompt"'),
        ('{"prompt": "aaaaaaaaa", "response": "b"}', "line 2: .*no room for its response"),
        ('{"prompt": "a", "response": null}', 'line 2: "response" is null; it must be a string'),
        ('{"prompt": null, "response": "b"}', 'line 2: "prompt" is null; it must be a string'),
        ('{"prompt": "a", "response": ["b"]}', r'line 2: "response" is \["b"\]; it must be a string'),
        ('{"text": null}', 'line 2: "text" is null; it must be a string'),
        ('{"text": 3, "id": 1}', 'line 2: "text" is 3; it must be a string'),
        ('{"text": "a", "prompt": "a"}', 'line 2 has the fields "text", "prompt"; it needs'),
        ('{"text": "a", "prompt": "b", "response": null}', "line 2 has the fields"),
        ("{}", "line 2 has the fields none"),
        ('"text"', "line 2 is .*object"),
        ("null", "line 2 is null; a line is an object"),
        ('{"text": "a", "text": "b"}', "line 2 is no JSON"),
        ('{"text": "a", "score": NaN}', "line 2 is no JSON"),
        (r'{"text": "a\ud83d b"}', "line 2 is no JSON"),
    ],
)
def test_records_that_are_none_are_refused(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=says):
        Text(str(tmp_path / "a.jsonl"), length=8).open("train")


def test_a_rendered_text_that_names_the_mask_token_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<end>", "<mask>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("a <mask> a")
    tokenizer = HuggingFace(str(tmp_path / "tokenizer.json"), "<mask>", ("<end>",), rendered=True)
    with pytest.raises(UserError, match=r"a\.txt: a text names the mask token"):
        Text(str(tmp_path / "a.txt"), tokenizer).open("train")


CHARACTERS = "caf\u00e9 \u2028 \u0085 \f \v \x1c a\0b 🙂"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""], ids=["lf", "crlf", "none"])
def test_files_of_text_are_read_whole_and_split_at_line_feeds_only(tmp_path, end, bom):
    """A byte order mark is no text, an empty line no record, and no other character ends a line."""
    line = json.dumps({"text": CHARACTERS}, ensure_ascii=False)
    lines = end.join([line, "", line]) + end if end else line
    expected = {"a.jsonl": [CHARACTERS] * (2 if end else 1), "a.txt": [CHARACTERS + end.replace("\r", "")]}
    for name, content in (("a.jsonl", lines), ("a.txt", CHARACTERS + end)):
        (tmp_path / name).write_bytes(bom + content.encode())
        source = Text(str(tmp_path / name), length=64, holdout=0.0)
        data = source.open("train")
        assert [source.tokenizer.decode(data[i]["x"].tolist()) for i in range(len(data))] == expected[name]


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text("")
    for path, says in (
        (tmp_path / "a.txt", "no UTF-8"),
        (tmp_path / "b*", "no file"),
        (tmp_path / "empty.txt", "no text"),
    ):
        with pytest.raises(UserError, match=says):
            Text(str(path)).open("train")
    with pytest.raises(UserError, match="length = 1"):
        Text(length=1)
    with pytest.raises(UserError, match="unknown split"):
        Text().open("dev")


# Nothing tells a model how long a text is


PAIRS = [("ask: ", "x" * k) for k in (0, 1, 5, 9, 40)]


def pair_batch(tmp_path, step=0, length=24):
    lines = [{"prompt": p, "response": r} for p, r in PAIRS] + [{"text": "short"}, {"text": "long" * 10}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(UserWarning, match="of 1 rows that are longer than 24"):
        data = Text(str(tmp_path / "a.jsonl"), length=length, holdout=0.0).open("train")
    items = [data[i] for i in range(len(data))]
    keys = items[0].keys() - {"x"}
    cond = {key: torch.stack([item[key] for item in items]) for key in keys}
    return Batch(torch.stack([item["x"] for item in items]), cond, training_noise(0, step, range(len(items))))


def text_net(block_size):
    return build("models", "text", length=24, width=8, depth=1, heads=2, block_size=block_size).build()


def ends(tmp_path, block_size, steps=200):
    """The positions after the last that is trained, of each item [steps, items]; all of them are seen."""
    found = []
    for step in range(steps):
        batch = pair_batch(tmp_path, step)
        tokens = token_batch(batch, text_net(block_size))
        assert torch.equal(tokens.trained, positions_between(24, batch.cond["prompt"], tokens.length))
        found.append(tokens.length)
    return torch.stack(found)


# position of the first end-of-text token of each item; 24 where the window holds none
STOPS = [5, 6, 10, 14, 24, 5, 24, 16]


def test_a_text_and_its_stop_tokens_fill_the_window(tmp_path):
    x = pair_batch(tmp_path).x
    assert [row.tolist().index(256) if 256 in row else 24 for row in x] == STOPS
    assert all(set(row[stop:].tolist()) <= {256} for row, stop in zip(x, STOPS, strict=True))


def test_a_network_that_sees_everything_sees_each_text_end_anywhere_behind_its_stop(tmp_path):
    drawn = ends(tmp_path, None)
    for end, stop in zip(drawn.T.tolist(), STOPS, strict=True):
        assert set(end) == set(range(min(stop, 23) + 1, 25))


@pytest.mark.parametrize("block_size", [4, 5, 16, 32])
def test_a_block_causal_network_sees_the_block_of_a_texts_stop_and_no_more(tmp_path, block_size):
    drawn = ends(tmp_path, block_size, 2)
    assert drawn.tolist() == [[min(24, (min(stop, 23) // block_size + 1) * block_size) for stop in STOPS]] * 2


@pytest.mark.parametrize("objective", ["llada", "mdlm", "bd3", "fast_dllm", "dparallel", "trajectory"])
@pytest.mark.parametrize("block_size", [None, 4])
def test_every_objective_and_its_validation_train_what_follows_a_text(tmp_path, objective, block_size, monkeypatch):
    folder = "distillers" if objective in ("dparallel", "trajectory") else "training.objectives"
    made, net, trained = build(folder, objective), text_net(block_size), []

    def kept(x, where, length):
        trained.append(where)
        return TokenBatch(x, where, length)

    monkeypatch.setattr("gen.training.objectives.lib.masked.TokenBatch", kept)
    batch = pair_batch(tmp_path)
    batch = dataclasses.replace(batch, cond=batch.cond | {"commit_step": torch.arange(24).expand_as(batch.x)})
    roles = {"net": SimpleNamespace(net=net, path=LogLinear())}
    next(iter(made(roles, batch)))
    made.validate(roles, batch)
    behind = torch.arange(24) > torch.tensor(STOPS)[:, None]
    assert len(trained) >= 2 and all(bool((seen & behind)[:4].any()) for seen in trained)


# Lists


@pytest.mark.parametrize("task", TASKS)
def test_every_item_holds_a_right_answer(task):
    source = Lists(tasks=(task,))
    for i in range(60):
        prompt, answer, places = source.make("train", i)
        assert source.right(prompt, answer) and source.right(prompt, [*answer, "<eos>", "a"])
        assert len(answer) < places <= source.answer
        assert len(prompt) + source.answer <= source.shape[0]
        old = prompt[prompt.index(":") + 1 : -1]
        assert len(set(old)) == len(old) and source.low <= len(old) <= source.high
        assert not source.right(prompt, [*answer, "a"]) and not source.right(prompt, [])
        if task != "copy" and old not in (sorted(old), old[::-1]):
            assert not source.right(prompt, old)


def test_answers_by_hand():
    right = Lists().right
    assert right(["copy", ":", "c", "a", "b", "="], ["c", "a", "b"])
    assert right(["reverse", ":", "c", "a", "b", "="], ["b", "a", "c"])
    assert right(["sort", ":", "c", "a", "b", "="], ["a", "b", "c"])
    assert right(["insert_index", "x", "1", ":", "c", "a", "b", "="], ["c", "x", "a", "b"])
    assert right(["insert_index", "x", "3", ":", "c", "a", "b", "="], ["c", "a", "b", "x"])
    assert right(["remove_index", "0", ":", "c", "a", "b", "="], ["a", "b"])
    assert right(["replace_index", "x", "2", ":", "c", "a", "b", "="], ["c", "a", "x"])
    assert not right(["replace_index", "x", "2", ":", "c", "a", "b", "="], ["c", "x", "b"])
    for place in range(4):
        answer = ["c", "a", "b"]
        answer.insert(place, "x")
        assert right(["insert_random", "x", ":", "c", "a", "b", "="], answer)
    assert not right(["insert_random", "x", ":", "c", "a", "b", "="], ["c", "x", "x", "b"])
    assert right(["remove_random", ":", "c", "a", "b", "="], ["c", "b"])
    assert not right(["remove_random", ":", "c", "a", "b", "="], ["b", "c"])
    assert right(["replace_random", "x", ":", "c", "a", "b", "="], ["x", "a", "b"])
    assert not right(["replace_random", "x", ":", "c", "a", "b", "="], ["c", "a", "b"])
    assert right(["shuffle", ":", "c", "a", "b", "="], ["a", "c", "b"])
    assert not right(["shuffle", ":", "c", "a", "b", "="], ["c", "a", "b"])
    assert not right(["shuffle", ":", "c", "a", "b", "="], ["a", "c", "c"])


def test_items_are_functions_of_seed_split_and_number():
    a, b = Lists(), Lists()
    assert [a.make("train", i) for i in range(20)] == [b.make("train", i) for i in range(20)]
    assert [a.make("train", i) for i in range(20)] != [Lists(seed=1).make("train", i) for i in range(20)]
    one, two = a.open("train"), Lists(seed=1).open("train")
    assert one.fingerprint == b.open("train").fingerprint != two.fingerprint
    assert len(one) == a.n and len(a.open("test")) == a.n // 10


def test_no_prompt_is_in_both_splits():
    """Few letters and short lists: prompts come again and again, and each on its own side."""
    source = Lists(tasks=("copy", "reverse"), low=2, high=3, items=5)
    train_, test = ({tuple(source.make(split, i)[0]) for i in range(300)} for split in ("train", "test"))
    assert not train_ & test and len(train_) > 100 and len(test) > 5


def test_random_answers_are_drawn_uniformly():
    source = Lists(tasks=("insert_random",), low=3, high=3, items=10)
    places = [answer.index(prompt[1]) for prompt, answer, _ in (source.make("train", i) for i in range(2000))]
    shares = torch.tensor(places).bincount(minlength=4) / 2000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_an_item_is_the_tokens_of_prompt_answer_and_end():
    source = Lists()
    item = source.open("train")[7]
    prompt, answer, places = source.make("train", 7)
    (first, text, rest), tokenizer = words(item, source)
    assert tokenizer.decode(first) == " ".join(prompt)
    assert tokenizer.decode(text[: len(answer)]) == " ".join(answer)
    assert len(text) == places and set(text[len(answer) :]) | set(rest) == {tokenizer.eos_token_ids[0]}
    assert item["x"].shape == source.shape and int(item["x"].max()) < source.vocab_size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": ("sorted",)}, "Did you mean 'sort'"),
        ({"tasks": ()}, "at least one task"),
        ({"low": 1}, "2 <= low"),
        ({"high": 26}, "high < items"),
    ],
)
def test_lists_that_cannot_be_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        Lists(**change)


def test_fixed_tasks_are_tasks():
    assert set(FIXED) < set(TASKS)


# Runs of texts


@pytest.mark.parametrize("make", [lists, lists_blocks])
def test_a_run_of_text_is_its_json(make):
    run = make()
    spec = json.loads(json.dumps(run_spec(run), allow_nan=False))
    assert (
        spec["parameterisation"] is None
        and spec["path"]["name"] == "log_linear"
        and spec["sampler"]["policy"]["name"] == "topk"
    )
    assert run_from(spec, None) == run


def test_a_decoding_is_overridden_as_a_sampler_is():
    run = override(lists(), {"sampler.policy.k": "3", "sampler.sampling.temperature": "0.5", "path.eps": "0.01"})
    assert (run.sampler.policy.k, run.sampler.sampling.temperature, run.path.eps) == (3, 0.5, 0.01)
    run = override(run, {"sampler.policy": "threshold", "sampler.policy.threshold": "0.7", "path": "cosine"})
    assert run.sampler.policy.threshold == 0.7 and type(run.path).__name__ == "Cosine"
    with pytest.raises(UserError, match="unknown key 'solver' of Decoding"):
        override(run, {"sampler.solver": "heun"})


@pytest.mark.parametrize(
    ("sampler", "owner"), [({"steps": 3, "blokcs": "x"}, "Sampler"), ({"policy": "topk", "stpes": 3}, "Decoding")]
)
def test_a_sampler_that_is_neither_is_told_what_it_nearly_is(sampler, owner):
    spec = run_spec(lists()) | {"sampler": sampler}
    with pytest.raises(UserError, match=f"unknown key '(blokcs|stpes)' of {owner}"):
        run_from(spec, None)


def tiny_model(data, block_size=None):
    return {
        "name": "text",
        "vocab_size": data.vocab_size,
        "mask_token_id": data.tokenizer.mask_token_id,
        "eos_token_ids": data.tokenizer.eos_token_ids,
        "length": data.shape[0],
        "width": 16,
        "depth": 1,
        "heads": 2,
        "block_size": block_size,
    }


def tiny_text(**changes):
    data = Lists(tasks=("copy",), low=2, high=3, items=5, n=100)
    settings = {
        "model": tiny_model(data, changes.pop("block_size", None)),
        "data": data,
        "objective": "llada",
        "path": LogLinear(),
        "parameterisation": None,
        "sampler": Decoding(),
        "steps": 4,
        "batch_size": 8,
        "log_every": 1,
        "sample_every": 0,
        "validate_every": 2,
        "save_every": 0,
    }
    return Run(**(settings | changes))


@pytest.mark.parametrize(
    ("objective", "block_size"), [("llada", None), ("mdlm", None), ("bd3", 4), ("fast_dllm", 4), ("bd3", None)]
)
def test_stopping_and_going_on_gives_the_same_bits(tmp_path, objective, block_size):
    run = tiny_text(objective=objective, block_size=block_size)
    train(run, tmp_path / "whole", quiet=True)
    train(dataclasses.replace(run, steps=2), tmp_path / "parts", quiet=True)
    train(run, tmp_path / "parts", quiet=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (read_metrics(tmp_path / f / "metrics.jsonl") for f in ("whole", "parts"))
    assert whole == parts and {"masked", "accuracy"} <= set(whole[0])


def test_micro_batches_change_rounding_only(tmp_path):
    train(tiny_text(), tmp_path / "whole", quiet=True)
    train(tiny_text(micro_batch_size=2), tmp_path / "micro", quiet=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "micro")
    assert all(torch.allclose(a[k], b[k], atol=2e-5) for k in a) and not same(a, b)


def test_a_run_of_text_writes_down_what_it_decodes_and_can_be_loaded(tmp_path):
    train(tiny_text(sample_every=2), tmp_path / "run", quiet=True)
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["step-0000002.txt", "step-0000004.txt"]
    data = Lists(tasks=("copy",), low=2, high=3, items=5, n=100)
    prompt, answer, _ = data.make("test", 0)
    paragraph = (tmp_path / "run" / "samples" / "step-0000004.txt").read_text().split("\n\n")[0].split("\n")
    assert paragraph[0] == "> " + " ".join(prompt) and paragraph[2] == f"({' '.join(answer)})"
    made = gen.load(tmp_path / "run").generate(" ".join(prompt), 4)
    assert made.tokens <= 4
    again = tiny_text(init=str(tmp_path / "run"), steps=1)
    train(again, tmp_path / "again", quiet=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampler": Sampler()}, "must be a Decoding"),
        ({"sampler.kv_plan": "block"}, "block"),
        ({"model.vocab_size": 30}, r"model\.vocab_size"),
        ({"model.length": 5}, r"model\.length = 5"),
        ({"model": "dit"}, "the model DiT takes none"),
        ({"objective": "bd3", "path": "flow"}, "must be a Sampler"),
    ],
)
def test_a_run_that_does_not_fit_itself_is_refused_before_any_work(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        train(override(tiny_text(), change), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_numbers_without_a_parameterisation_have_their_path_s_own():
    run = Run(model="dit", parameterisation=None)
    check_sampler(run)
    assert run.parameterisation == build("diffusion.parameterisation", run.path.natural["parameterisation"])


@pytest.mark.parametrize("line", [{"text": "abc"}, {"prompt": "a", "response": "bc"}])
def test_a_run_on_a_file_of_texts_trains_and_goes_on(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line))
    data = Text(str(tmp_path / "a.jsonl"), length=16, holdout=0.5)
    run = tiny_text(data=data, model=tiny_model(data), steps=2)
    train(dataclasses.replace(run, steps=1), tmp_path / "run", quiet=True)
    assert train(run, tmp_path / "run", quiet=True).step == 2
