"""Rows of text data: chats, what is cut, packing, gaps, tables, and rows that are streamed."""

from __future__ import annotations

import json
import random
import warnings
from types import SimpleNamespace

import datasets
import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, override, spec_of
from gen.data import spec_at
from gen.data.lib.infill import Middle, Spans, infilled
from gen.data.lib.text_rows import Window, pack
from gen.data.text import Text
from gen.diffusion.noise import training_noise
from gen.text.mask_path import LogLinear
from gen.text.pipeline import TextPipeline
from gen.training.objectives import Batch
from gen.training.objectives.lib.masked import token_batch
from gen.training.recipes.text import text as text_recipe
from gen.training.stream import ShuffledStream
from gen.training.trainer import train
from tests.gen.text.test_chat import CHATS, names, tokenizer_in
from tests.gen.training.test_trainer import same, weights

STOP = 256
QUIET = {"sample_every": 0, "validate_every": 0, "save_every": 0, "steps": 1, "ema": []}
IDS = {"vocab_size": 260, "mask_token_id": 257, "eos_token_ids": [256, 259]}


def write(folder, rows, name="a.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def item_text(source, item):
    """Prompt, and what follows it up to its end, of an item."""
    decode, prompt = source.tokenizer.decode, int(item["prompt"])
    return decode(item["x"][:prompt].tolist()), decode(item["x"][prompt:].tolist())


def batch_of(items, step=0):
    stacked = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    return Batch(stacked.pop("x"), stacked, training_noise(0, step, range(len(items))))


def text_net(block_size, length):
    return build("models", "text", length=length, width=8, depth=1, heads=2, block_size=block_size).build().double()


# Chats


def test_a_chat_is_a_row_and_with_every_turn_one_row_each(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    path = write(tmp_path, [{"messages": CHATS[1], "id": 3}, {"prompt": "a", "response": "b"}])
    for turns, expected in (("last", [["no\n"], ["b"]]), ("every", [["yes", "no\n"], ["b"]])):
        source = Text(path, tokenizer, length=200, holdout=0.0, turns=turns)
        data = source.open("train")
        texts = [item_text(source, data[i]) for i in range(len(data))]
        assert [response for _, response in texts] == [response for row in expected for response in row]
        first = data[len(expected[0]) - 1]
        assert names(tokenizer, first["x"][: int(first["prompt"])].tolist()) == tokenizer.chat.render(
            CHATS[1][:4], True
        )


@pytest.mark.parametrize("block_size", [None, 16])
def test_a_chat_ends_as_a_pair_does(tmp_path, block_size):
    """Of every turn the stop token is trained, and what fills its block, or the window up to a random position."""
    tokenizer = tokenizer_in(tmp_path)
    source = Text(write(tmp_path, [{"messages": CHATS[1]}]), tokenizer, length=160, holdout=0.0, turns="every")
    data, ends = source.open("train"), []
    spec = {
        "vocab_size": 260,
        "mask_token_id": 257,
        "eos_token_ids": [256, 259],
        "length": 160,
        "block_size": block_size,
    }
    net = build("models", "text", width=8, depth=1, heads=2, **spec).build()
    stops = [int((item["x"] != 256).nonzero().max()) for item in (data[0], data[1])]  # the turn's own <|im_end|>
    assert all(int(data[i]["x"][stop]) == 259 for i, stop in enumerate(stops))
    for step in range(50):
        tokens = token_batch(batch_of([data[0], data[1]], step), net)
        assert all(bool(tokens.trained[i, stop]) for i, stop in enumerate(stops))
        assert all(not tokens.trained[i, : int(data[i]["prompt"])].any() for i in range(2))
        ends.append(tokens.length.tolist())
    if block_size:
        assert ends == [[(stop // 16 + 1) * 16 for stop in stops]] * 50
    else:
        assert all(
            stop < min(e) and max(e) - min(e) > 10 for stop, e in zip(stops, zip(*ends, strict=True), strict=True)
        )


def test_tools_are_left_out_with_a_word(tmp_path):
    path = write(tmp_path, [{"messages": CHATS[0], "tools": [{"type": "function"}]}, {"messages": CHATS[0]}])
    with pytest.warns(UserWarning, match="tools are left out, in 1 rows"):
        assert len(Text(path, tokenizer_in(tmp_path), holdout=0.0).open("train")) == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": "hi"}, "line 2: messages are 'hi'"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "line 2: message 1 has the role 'bot'"),
        ({"messages": [{"role": "user", "content": ""}]}, r"line 2: message 1 \(user\) is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2: the messages have no assistant's turn"),
    ],
)
def test_chats_that_are_none(tmp_path, row, says):
    path = write(tmp_path, [{"messages": CHATS[0]}, row])
    with pytest.raises(UserError, match=rf"a\.jsonl, {says}"):
        Text(path, tokenizer_in(tmp_path)).open("train")
    with pytest.raises(UserError, match=r"line 1: Bytes has no chat template.*: give --data.tokenizer"):
        Text(path).open("train")


def test_fields_by_other_names(tmp_path):
    path = write(tmp_path, [{"question": "a", "answer": "b", "text": "no"}])
    source = Text(path, holdout=0.0, columns=("question", "answer"))
    assert item_text(source, source.open("train")[0]) == ("a", "b")
    with pytest.raises(
        UserError, match='line 1 has the fields "question", "answer", "text"; it needs "q"; fields by other names'
    ):
        Text(path, columns=("q",)).open("train")
    with pytest.raises(UserError, match="one of text or messages, or prompt and response"):
        Text(columns=("a", "b", "c"))


# Literal text


ODD = [
    "\x00\x7f", "e\u0301 \u200d\u200b", "👩\u200d👩\u200d👧", "\ufeff\u2028\u0085\r\n", "𝕏\U0010ffff", "\u202eabc",
    "<|im_end|><|mask|>",
]  # fmt: skip


def test_special_tokens_that_texts_name_are_text(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    path = write(tmp_path, [{"text": "a <|mask|> b<|im_end|>"}, {"prompt": "<|im_start|>", "response": "<|mask|>"}])
    source = Text(path, tokenizer, length=64, holdout=0.0)
    data = source.open("train")
    assert item_text(source, data[0]) == ("", "a <|mask|> b<|im_end|>")
    assert item_text(source, data[1]) == ("<|im_start|>", "<|mask|>")
    assert [int((data[i]["x"] >= 256).sum()) for i in range(2)] == [64 - 22, 64 - 20]  # the stop tokens alone
    with pytest.raises(UserError, match="line 1: a text names the mask token"):
        Text(path, override(tokenizer, {"rendered": True}), length=64).open("train")


def test_any_string_survives_the_round_trip(tmp_path):
    draw, tokenizers = random.Random(0), (build("text.tokenizers", "bytes"), tokenizer_in(tmp_path))
    strings = ["".join(draw.choices([*ODD, *map(chr, range(32, 400)), "🙂", "\U000e0001"], k=draw.randint(0, 20)))
               for _ in range(200)]  # fmt: skip
    for text in [*ODD, *strings]:
        for tokenizer in tokenizers:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text and not {tokenizer.mask_token_id, *tokenizer.eos_token_ids} & set(ids)


# What is cut


def test_what_is_cut_is_said(tmp_path):
    pairs = [("abcdef", "uvwxyz"), ("a", "b"), ("p", "r" * 20)]
    path = write(tmp_path, [{"prompt": prompt, "response": response} for prompt, response in pairs])
    expected = {
        "response": (
            [("abcdef", "uv"), ("a", "b"), ("p", "r" * 7)],
            "19 tokens are lost at the end of the responses of 2",
        ),
        "prompt": (
            [("f", "uvwxyz"), ("a", "b"), ("", "r" * 8)],
            "19 tokens are lost at the beginning of the prompts of 2",
        ),
        "drop": ([("a", "b")], "35 tokens are lost with 2 rows that are left out, longer than 8"),
    }
    for truncate, (kept, says) in expected.items():
        source = Text(path, length=8, holdout=0.0, truncate=truncate)
        with pytest.warns(UserWarning, match=says) as said:
            data = source.open("train")
        assert [item_text(source, data[i]) for i in range(len(data))] == kept and len(said) == 1
    with pytest.raises(
        UserError, match=r"line 1: the prompt has 6 tokens.*set data\.length, or data\.truncate to prompt"
    ):
        Text(path, length=6, holdout=0.0).open("train")


# Packing


def test_texts_share_windows_and_nothing_is_lost(tmp_path):
    rows = [{"text": "x" * n} for n in (3, 9, 1, 5, 20)] + [{"prompt": "ab", "response": "c"}]
    source = Text(write(tmp_path, rows), length=16, holdout=0.0, packing=4)
    data = source.open("train")
    assert len(data) == 4 and data[0].keys() == {"x", "given", "document"}
    texts = []
    for i in range(len(data)):
        item = data[i]
        for number in item["document"].unique().tolist():
            where = item["document"] == number
            texts.append(source.tokenizer.decode(item["x"][where].tolist()))
            assert int(where.nonzero().min()) % 4 == 0
    assert [t for t in texts if t] == ["xxx", "x" * 9, "x", "x" * 5, "x" * 16, "xxxx", "abc"]
    assert data[3]["given"].tolist() == [False] * 8 + [True] * 2 + [False] * 2 + [True] * 4
    assert data.batch([0, 1])["x"].dtype == torch.int64
    assert source.whole == override(source, {"packing": None}) and len(source.whole.open("train")) == 7
    pipeline = TextPipeline(text_net(4, 16), source.tokenizer)
    assert pipeline.prompt_of(data[3]) == ([120], 7)  # the first text of the window
    prompts = pack([Window([1, 2, 3, STOP], 2), Window([4, STOP], 1)], 8, 4, STOP)
    assert pipeline.prompt_of({key: value[0] for key, value in prompts.items()}) == ([1, 2], 2)


def test_packed_rows_are_trained_by_every_objective_and_blocks_must_fit(tmp_path):
    rows = [{"prompt": "ab", "response": "c" * n} for n in range(1, 20)]
    source = Text(write(tmp_path, rows), length=32, packing=8, holdout=0.0)
    data = source.open("train")
    batch = batch_of([data[i] for i in range(len(data))])
    for name, block_size in (("llada", None), ("mdlm", None), ("bd3", 8), ("fast_dllm", 4)):
        objective, roles = build("training.objectives", name), {"net": SimpleNamespace(net=text_net(block_size, 32))}
        roles["net"].path = LogLinear()
        (_, loss, logs), *_ = objective(roles, batch)
        assert bool(loss.isfinite()) and 0 < float(logs["masked"]) <= 1
        assert torch.equal(token_batch(batch, roles["net"].net).trained.any(1), torch.ones(len(data), dtype=torch.bool))
    run = override(text_recipe(), {"data": spec_of(source), "model.block_size": 12, "model.length": 32, **QUIET})
    with pytest.raises(UserError, match=r"data\.packing = 8.*multiple of model\.block_size = 12"):
        train(run, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="packing and infill do not go together"):
        Text(packing=8, infill="middle")


def test_a_share_is_never_larger_than_a_window():
    packed = pack([Window([1] * 9 + [STOP], 0), Window([2, STOP], 1)], 10, 8, STOP)
    assert packed["x"].tolist() == [[1] * 9 + [STOP], [2] + [STOP] * 9]
    assert packed["document"].tolist() == [[0] * 10, [0] * 8 + [1] * 2]
    assert packed["given"].tolist() == [[False] * 10, [True] + [False] * 7 + [True] * 2]


# Gaps


INFILLS = [Middle(), Middle(room=3), Spans(), Spans(share=0.9, mean=2.0, room=2), Spans(share=1.0)]


@pytest.mark.parametrize("infill", INFILLS, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_what_is_given_and_what_fills_the_gaps_is_the_text(infill, n):
    ids = list(range(n))
    gaps = []
    for key in range(100):
        item = infilled(ids, 200, infill, STOP, key)
        length, x, given = int(item["length"]), item["x"].tolist(), item["given"].tolist()
        assert [i for i in x[:length] if i != STOP] == ids
        assert all(g or i == STOP or i in ids for g, i in zip(given, x, strict=True)) and not all(given)
        assert all(i != STOP for i, g in zip(x[:length], given, strict=False) if g)
        assert x[length:] == [STOP] * (200 - length) and all(given[length:])
        gaps.append(sum(not g and i != STOP for i, g in zip(x, given, strict=True)))
    if isinstance(infill, Spans):
        assert set(gaps) == {max(1, round(infill.share * n))}
    elif n == 40:
        assert min(gaps) < 5 and max(gaps) > 30
    assert infilled(ids, 200, infill, STOP, 3)["x"].equal(infilled(ids, 200, infill, STOP, 3)["x"])
    assert not bool(infilled(ids, 1, infill, STOP, 0)["given"].all()) or n > 1


def test_gaps_are_drawn_anew_in_every_epoch_and_are_trained(tmp_path):
    path = write(tmp_path, [{"text": "abcdefghijklmnopqrst" * 2}])
    source = Text(path, length=24, holdout=0.0, infill={"name": "spans", "share": 0.5, "room": 2})
    data = source.open("train")
    assert build("data", json.loads(json.dumps(spec_of(source)))) == source and len(data) == 2
    stream = ShuffledStream(data, 0)
    items = [stream[p] for p in range(12)]
    assert len({tuple(item["given"].tolist()) for item in items}) > 6
    again = ShuffledStream(source.open("train"), 0)[7]
    assert all(torch.equal(torch.as_tensor(again[key]), torch.as_tensor(items[7][key])) for key in again)
    batch = batch_of([{key: item[key] for key in ("x", "given", "length")} for item in items])
    tokens = token_batch(batch, text_net(None, 24))
    assert torch.equal(tokens.trained, ~batch.cond["given"])
    run = override(text_recipe(), {"data": spec_of(source), "model.length": 24, **QUIET})
    with pytest.raises(UserError, match=r"sees nothing of the text behind a gap: set model\.block_size to none"):
        train(run, tmp_path / "run", quiet=True)
    write(tmp_path, [{"prompt": "a", "response": "b"}])
    with pytest.raises(UserError, match="line 1: infilling is of texts"):
        source.open("train")


# Tables


ROWS = {
    "text": [{"text": "".join(random.Random(i).choices("abcdef ", k=5 + i % 40))} for i in range(60)],
    "pairs": [{"prompt": f"p{i}", "response": "r" * (i % 9), "id": i} for i in range(60)],
    "messages": [
        {"messages": [{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(60)
    ],
}


def parquet(folder, kind, group=10):
    datasets.Dataset.from_list(ROWS[kind]).to_parquet(folder / f"{kind}.parquet", batch_size=group)
    return str(folder / f"{kind}.parquet")


def source_of(folder, kind, path, **fields):
    tokenizer = tokenizer_in(folder) if kind == "messages" else build("text.tokenizers", "bytes")
    return Text(path, tokenizer, **{"length": 64, "holdout": 0.0} | fields)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_tables_are_lines_of_jsonl_and_streamed_they_are_the_same(tmp_path, kind, monkeypatch):
    lines = source_of(tmp_path, kind, write(tmp_path, ROWS[kind])).open("train")
    path = parquet(tmp_path, kind)
    whole = source_of(tmp_path, kind, path).open("train")
    streamed = source_of(tmp_path, kind, path, streaming=True, row_groups=2).open("train")
    by_url = source_of(tmp_path, kind, f"file://{tmp_path}", streaming=True).open("train")
    monkeypatch.setattr("gen.data.lib.row_groups.LINES", 7)
    by_line = source_of(tmp_path, kind, str(tmp_path / "a.jsonl"), streaming=True).open("train")
    saved = tmp_path / "saved"
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[kind])).save_to_disk(saved)
    from_saved = source_of(tmp_path, kind, str(saved)).open("train")
    assert len(lines) == len(whole) == len(streamed) == len(from_saved) == 60
    assert streamed.groups.tolist() == [10] * 6 and lines.fingerprint == whole.fingerprint == from_saved.fingerprint
    for i in range(60):
        for other in (whole[i], streamed[i], streamed.draw(i, 5), from_saved[i], by_line[i], by_url[i]):
            assert lines[i].keys() == other.keys() and all(torch.equal(lines[i][key], other[key]) for key in other)
    assert f"{kind}.parquet, row group 1, row 3" in streamed.where(13)
    assert spec_at(path) == {"name": "text", "path": path}


def test_held_out_rows_are_a_share_of_each_group(tmp_path):
    source = source_of(tmp_path, "pairs", parquet(tmp_path, "pairs"), streaming=True, holdout=0.2)
    splits = [source.open(split) for split in ("train", "test")]
    rows = [{tuple(data[i]["x"].tolist()) for i in range(len(data))} for data in splits]
    assert [data.groups.tolist() for data in splits] == [[8] * 6, [2] * 6] and not rows[0] & rows[1]
    assert splits[0].fingerprint == source.open("train").fingerprint != splits[1].fingerprint


def test_a_long_row_has_another_window_each_epoch_and_an_empty_one_is_passed_over(tmp_path):
    rows = [{"text": ""}, {"text": "".join(map(chr, range(97, 123))) * 4}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    source = Text(str(tmp_path / "a.parquet"), length=10, holdout=0.0, streaming=True)
    data = source.open("train")
    whole = {
        tuple(w["x"].tolist()) for w in map(override(source, {"streaming": False}).open("train").__getitem__, range(11))
    }
    assert {tuple(data.draw(1, key)["x"].tolist()) for key in range(1, 200)} == whole
    assert torch.equal(data[0]["x"], data[1]["x"])
    gaps = override(source, {"infill": "middle"}).open("train")
    assert gaps.draw(1, 3).keys() == {"x", "given", "length"}
    datasets.Dataset.from_list(rows[:1]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet, row group 0, row 0: no row of its group holds text"):
        Text(str(tmp_path / "b.parquet"), holdout=0.0, streaming=True).open("train")[0]


def test_wrong_rows_and_wrong_streams_are_one_line(tmp_path):
    datasets.Dataset.from_list([{"prompt": "a", "response": None}]).to_parquet(tmp_path / "a.parquet")
    streamed = Text(str(tmp_path / "a.parquet"), holdout=0.0, streaming=True).open("train")
    with pytest.raises(UserError, match=r'a\.parquet, row group 0, row 0: "response" is null; it must be a string'):
        streamed[0]
    for fields, says in (
        ({"path": write(tmp_path, ROWS["text"], "a.txt")}, "is neither .parquet nor .arrow nor .jsonl"),
        ({"path": str(tmp_path / "a.parquet"), "columns": ["q"]}, 'fields "prompt", "response"; it needs "q"'),
    ):
        with pytest.raises(UserError, match=says):
            Text(**{"streaming": True} | fields).open("train")
    for fields in ({"path": None}, {"path": "a.parquet", "truncate": "drop"}):
        with pytest.raises(UserError, match="streaming"):
            Text(**fields, streaming=True)


def test_streamed_lines_are_numbered_and_empty_ones_are_none(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "\xff"}\n{"text": 3}\n[]')
    data = Text(str(tmp_path / "a.jsonl"), length=8, holdout=0.0, streaming=True).open("train")
    assert len(data) == 4
    with pytest.raises(UserError, match=r"a\.jsonl, line 3 is no UTF-8 text"):
        data[0]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": 3}\n[]')
    data = Text(str(tmp_path / "a.jsonl"), length=8, holdout=0.0, streaming=True).open("train")
    assert data[0]["x"].tolist() == [97] + [STOP] * 7
    for i, says in ((1, 'line 3: "text" is 3; it must be a string'), (2, r"line 4 is \[\]; a line is an object")):
        with pytest.raises(UserError, match=says):
            data[i]


def test_of_a_streamed_chat_any_of_its_turns_is_drawn(tmp_path):
    datasets.Dataset.from_list([{"messages": CHATS[1]}]).to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    source = Text(path, tokenizer_in(tmp_path), length=200, holdout=0.0, turns="every", streaming=True)
    data, whole = source.open("train"), override(source, {"streaming": False}).open("train")
    turns = {tuple(whole[i]["x"].tolist()) for i in range(2)}
    assert {tuple(data.draw(0, key)["x"].tolist()) for key in range(1, 40)} == turns


@pytest.mark.parametrize("kind", ROWS)
def test_streamed_rows_are_packed_once_an_epoch_in_other_windows_each_time(tmp_path, kind):
    """The rows of a group, each whole and once in as many windows as they fill."""
    path, every = parquet(tmp_path, kind, group=20), {"holdout": 0.1, "streaming": True, "row_groups": 2}
    packed, alone = (source_of(tmp_path, kind, path, packing=n, **every).open("train") for n in (4, None))
    assert len(packed) < len(alone) == 54 and len(packed.groups) == 3 and packed.groups_at_once == 2
    decode = packed.texts.text.tokenizer.decode

    def texts_of(items):
        texts = []
        for item in items:
            assert item.keys() == {"x", "given", "document"} and item["x"].dtype == torch.int64
            for number in item["document"].unique().tolist():
                where = (item["document"] == number) & (item["x"] != STOP)
                assert int((item["document"] == number).nonzero().min()) % 4 == 0
                texts += (
                    [(decode(item["x"][where].tolist()), int((item["given"] & where).sum()))] if where.any() else []
                )
        return texts

    first = [packed.draw(i, 7) for i in range(int(packed.groups[0]))]
    rows = [alone[i] for i in range(18)]
    wanted = [(decode(row["x"][row["x"] != STOP].tolist()), int(row["prompt"])) for row in rows]
    found = texts_of(first)
    windows = packed._packed[0, 7]
    whole = texts_of([windows[0][k] for k in range(len(windows[0]))])
    assert sorted(whole) == sorted(wanted) and abs(len(windows[0]) - len(first)) <= 4
    assert set(found) <= set(wanted) and len(set(found)) >= 14
    assert texts_of([packed.draw(i, 8) for i in range(len(first))]) != found
    assert [packed.drawn_with(i) for i in (0, len(first), -1)] == [0, 1, 2]
    assert "row group 2" in packed.where(-1) and "row " not in packed.where(-1).partition("row group 2")[2]
    stream, again = (
        ShuffledStream(source_of(tmp_path, kind, path, packing=4, **every).open("train"), 0, 4) for _ in "ab"
    )
    items = [stream[p] for p in range(30)]
    for p in (29, 3, 17):  # wherever it begins
        assert all(torch.equal(torch.as_tensor(again[p][key]), torch.as_tensor(items[p][key])) for key in items[p])
    seen = [packed.draw(i, 9) for i in range(len(packed))] * 2
    assert packed.keep(3) is None and all(item["x"].shape == (64,) for item in seen)


def test_more_items_than_windows_are_further_windows_of_the_same_rows(tmp_path):
    rows = [{"text": "x" * n} for n in (60, 60, 60, 60, 1, 1, 1, 1)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet", batch_size=4)
    data = Text(str(tmp_path / "a.parquet"), length=64, holdout=0.0, streaming=True, packing=4).open("train")
    assert data.groups.tolist() == [2, 2]  # of five windows: four of the first group, one of the second
    assert {int((data.draw(i, 3)["x"] != STOP).sum()) for i in range(2)} == {60}
    assert [int((data.draw(i, 3)["x"] != STOP).sum()) for i in (2, 3)] == [4, 4]
    datasets.Dataset.from_list([{"text": ""}] * 3).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet, row group 0, row .: no row of its group holds text"):
        Text(str(tmp_path / "b.parquet"), holdout=0.0, streaming=True, packing=4).open("train")[0]


@pytest.mark.parametrize("packing", [None, 16])
def test_a_streamed_run_resumes_to_the_bit(tmp_path, packing):
    how = {"streaming": True, "row_groups": 2, "holdout": 0.1, "packing": packing}
    source = source_of(tmp_path, "messages", parquet(tmp_path, "messages"), **how)
    ids = {"vocab_size": 260, "mask_token_id": 257, "eos_token_ids": [256, 259]}
    changes = {
        f"model.{key}": value for key, value in {"width": 16, "depth": 1, "heads": 2, "length": 64, **ids}.items()
    }
    often = {**QUIET, "validate_every": 3, "save_every": 3, "batch_size": 8}
    run = override(text_recipe(), {**changes, **often, "data": spec_of(source), "model.tokenizer": None, "steps": 6})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(run, tmp_path / "one", quiet=True)
        train(override(run, {"steps": 3}), tmp_path / "two", quiet=True)
        train(run, tmp_path / "two", quiet=True)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
