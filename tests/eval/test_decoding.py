"""Measured decoders: exact worlds give the success and the counts that their law says, and pages show them."""

import dataclasses
import json
import math
from dataclasses import dataclass

import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import convert, digest
from gen.data.lists import Lists
from gen.eval.decoding import (
    DecodingRecord,
    aup,
    collect_decoding,
    curves,
    decoding_table,
    group_by_protocol,
    measure_decoding,
    sweep,
    undominated,
)
from gen.eval.estimate import Estimate
from gen.eval.pages.decoding import decoding_page
from gen.eval.parallelbench.lists import ListTask
from gen.eval.parallelbench.waiting_line import WaitingLine
from gen.eval.record import from_json, to_json
from gen.models.text import Text
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.chat import ChatTemplate
from gen.text.decoding import Decoding, TokenSampling
from gen.text.pipeline import TextPipeline
from gen.text.worlds import (
    JointDistribution,
    decoded_distribution,
    insert_joint,
    remove_joint,
    replace_joint,
    shuffle_joint,
)


class Support:
    """Right is what the joint may say; the prompt says nothing. A task that is no dataclass has no spec."""

    label = "support"

    def __init__(self, joint):
        self.joint = joint
        self.length = joint.support.shape[1]

    def prompts(self, split, n):
        return [[] for _ in range(n)]

    def score(self, prompt, reply):
        return float(reply in self.joint.support.tolist())


def drawn(policy, **more):
    return Decoding(policy=policy, sampling=TokenSampling(temperature=1.0), stopping_rules=(), **more)


def one(joint, how, n=400, **more):
    (record,) = measure_decoding(joint, Support(joint), {"it": {"it": how}}, n=n, **more)
    return record


JOINTS = {
    "replace": replace_joint(5),
    "shuffle": shuffle_joint(4),
    "insert": insert_joint(4),
    "remove": remove_joint(5),
}


@pytest.mark.parametrize("policy", [Threshold(0.75), TopK(2), TopK(9)], ids=["threshold", "two", "all"])
@pytest.mark.parametrize("name", JOINTS)
def test_success_is_the_laws(name, policy):
    joint = JOINTS[name]
    record, exact = one(joint, drawn(policy)), decoded_distribution(joint, policy)
    error = math.sqrt(exact.success * (1 - exact.success) / 400)
    assert abs(record.success.value - exact.success) <= 4 * error + 1e-12
    assert record.success.se == pytest.approx(error, rel=0.25, abs=0.006)


@pytest.mark.parametrize(("k", "nfe"), [(1, 5), (2, 3), (3, 2), (5, 1)])
def test_tokens_per_forward_are_counted(k, nfe):
    record = one(replace_joint(5), drawn(TopK(k)), n=20)
    assert (record.nfe, record.tokens, record.computed, record.full) == (nfe, 5, 5 * nfe, nfe)
    assert record.tokens_per_forward == Estimate(5 / nfe, pytest.approx(0, abs=1e-12), 20)
    assert record.ms > 0
    assert record.tokens_per_second == pytest.approx(5000 / record.ms)


@dataclass(frozen=True)
class Prompted:
    """Prompts of ids, of which the joint knows nothing, and replies that end with the stop token 2."""

    label: str = "prompted"
    length: int = 4

    def prompts(self, split, n):
        return [[0, 1, 0]] * n

    def score(self, prompt, reply):
        assert prompt == [0, 1, 0]
        return 0.5 if reply == [1] else 1.0


def test_prompts_and_what_follows_a_stop_token_count_for_nothing():
    texts = torch.tensor([[1, 2, 2, 2], [1, 1, 1, 2]])
    joint = JointDistribution(texts, torch.tensor([0.5, 0.5], dtype=torch.float64), 3, offset=3, eos_token_ids=(2,))
    how = Decoding(policy=TopK(1, "left_to_right"), sampling=TokenSampling(temperature=1.0))
    (record,) = measure_decoding(joint, Prompted(), {"l2r": {"l2r": how}}, n=50)
    assert record.tokens == record.nfe  # one at a time up to the stop token, and no further
    assert 2 < record.tokens < 4
    assert record.tokens_per_forward.value == 1
    assert record.computed > 4 * record.nfe  # but the network reads prompts
    short = (4 - record.tokens) / 2
    assert record.success.value == pytest.approx(1 - short / 2)
    assert record.success.se == pytest.approx(math.sqrt(short * (1 - short) / 4 / 49), rel=1e-6)
    assert record.bound is None


def test_replies_do_not_depend_on_the_batch():
    how, values = drawn(TopK(2)), ("success", "nfe", "tokens")
    small, large = (one(shuffle_joint(4), how, n=30, batch_size=b, seed=3) for b in (7, 64))
    assert [getattr(small, key) for key in values] == [getattr(large, key) for key in values]
    assert one(shuffle_joint(4), how, n=30, seed=4).success != small.success
    assert small.comparability == large.comparability
    assert small.comparability != one(shuffle_joint(4), how, n=29).comparability


def test_aup_by_hand():
    assert aup([(2.0, 80.0)]) == 160.0
    assert aup([(3.0, 80.0), (1.0, 80.0)]) == pytest.approx(240)  # flat: nothing is lost
    lost = 76 * math.exp(-3 * (1 - 76 / 80))
    assert aup([(1.0, 80.0), (3.0, 76.0)]) == pytest.approx(80 + 0.5 * 2 * (80 + lost))
    assert aup([(1.0, 80.0), (3.0, 76.0), (9.0, 74.9)]) == aup([(1.0, 80.0), (3.0, 76.0)])  # more than 5 below
    below = [(1.0, 50.0), (2.0, 50.0)]
    assert aup(below, best=100.0) == pytest.approx(50 + 50 * math.exp(-1.5))
    assert aup(below) == pytest.approx(100)
    assert aup([(1.0, 60.0), (2.0, 80.0)]) == pytest.approx(60 + 0.5 * (60 * math.exp(-0.75) + 80))
    assert aup([(1.0, 0.0), (4.0, 0.0)]) == 0
    with pytest.raises(UserError):
        aup([])


def test_sweeps_are_read():
    assert sweep("threshold:.9,0.7") == (
        "threshold",
        {
            "threshold 0.9": {"name": "threshold", "threshold": 0.9},
            "threshold 0.7": {"name": "threshold", "threshold": 0.7},
        },
    )
    name, points = sweep("topk:1,2:score=random")
    assert name == "topk, score random"
    assert points["topk 2, score random"] == {"name": "topk", "k": 2, "score": "random"}
    assert sweep("topk:steps=2,4")[1]["topk 4"] == {"name": "topk", "steps": 4}
    assert sweep("factor:1") == ("factor", {"factor 1": {"name": "factor", "factor": 1}})
    assert sweep("threshold") == ("threshold", {"threshold": {"name": "threshold"}})


@pytest.mark.parametrize("text", ["thresold:.9", "threshold:thresold=.9", "topk:1,2:random"])
def test_sweeps_that_mean_nothing_are_refused(text):
    with pytest.raises(UserError, match=r"unknown|no key=value"):
        sweep(text)


@pytest.fixture(scope="module")
def pipeline():
    data = Lists()
    words = data.tokenizer
    torch.manual_seed(0)
    spec = Text(
        vocab_size=words.vocab_size,
        length=32,
        width=16,
        depth=1,
        heads=2,
        mask_token_id=words.mask_token_id,
        eos_token_ids=words.eos_token_ids,
    )
    return TextPipeline(spec.build().eval(), words, Decoding(), 32, data, name="<toy>")


@pytest.fixture(scope="module")
def records(pipeline):
    """Two tasks, two curves, of a network that knows nothing."""
    settings = {
        "topk": {f"topk {k}": pipeline.plan(policy=TopK(k)) for k in (1, 4)},
        "threshold": {"threshold 0.9": pipeline.plan(policy=Threshold(0.9))},
    }
    tasks = [ListTask(task, pipeline.data) for task in ("copy", "replace_random")]
    how = {"n": 6, "command": "gen bench-decode <x>"}
    return [r for task in tasks for r in measure_decoding(pipeline, task, settings, **how)]


def test_a_pipelines_records_are_whole(records, tmp_path):
    file = tmp_path / "decode.json"
    file.write_text(json.dumps([to_json(record) for record in records]))
    assert collect_decoding([file]) == records
    assert [r.label for r in records[:3]] == ["topk 1", "topk 4", "threshold 0.9"]
    assert [r.nfe for r in records[:2]] == [8, 2]
    assert records[0].bound == ((pytest.approx(5.5), pytest.approx(1)),)
    forwards = (8 / 3 + 13 / 4 + 19 / 5 + 13 / 3) / 4  # one kept item after another, until the new one shows the rest
    assert records[3].bound[0] == (pytest.approx(5.5 / forwards), pytest.approx(1))
    assert convert(records[0].decoding, Decoding, "decoding") == Decoding(policy=TopK(1))


def test_what_is_no_record_is_refused(records, tmp_path):
    sealed = to_json(records[0])
    with pytest.raises(UserError, match="here does not match its own sha256"):
        from_json({**sealed, "nfe": 0.5}, DecodingRecord, "here")
    del sealed["sha256"]
    for changes in ({"schema": 1}, {"label": 3}, {"nfe": "eight"}, {"protocol": 3}, {"bound": [[1]]},
                    {"success": {"value": 1.0, "error": 0.0}}):  # fmt: skip
        altered = sealed | changes
        with pytest.raises(UserError, match=r"^here"):
            from_json({**altered, "sha256": digest(altered)}, DecodingRecord, "here")
    with pytest.raises(UserError, match=r"success.value is nan"):
        dataclasses.replace(records[0], success=Estimate(float("nan"), 0.1, 6))
    file = tmp_path / "bad.json"
    for content in ("{", "{}"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"bad\.json"):
            collect_decoding([file])
    file.write_text(json.dumps([to_json(records[0]), {}]))
    with pytest.raises(UserError, match=r"bad\.json, record 2"):
        collect_decoding([file])


def test_a_task_longer_than_the_canvas_is_refused(pipeline):
    with pytest.raises(UserError, match="together more than the 32"):
        measure_decoding(pipeline, ListTask("copy", pipeline.data), {"a": {"a": Decoding()}}, n=2, length=40)
    with pytest.raises(UserError, match="0 settings"):
        measure_decoding(pipeline, ListTask("copy", pipeline.data), {}, n=2)


def known(rate, success, curve="a", **more):
    given = {"run": "r", "task": "t", "protocol": {}, "decoding": {}, "n": 9, "label": f"{curve} {rate}"}
    numbers = dict.fromkeys(("nfe", "tokens", "computed", "full", "tokens_per_second", "ms"), 1.0)
    pair = {"success": Estimate(success, 0.01, 9), "tokens_per_forward": Estimate(rate, 0.0, 9)}
    return DecodingRecord(**(given | numbers | pair | {"curve": curve} | more))


def test_curves_are_ranked_by_aup_and_the_front_is_found():
    a = [known(1, 0.8), known(4, 0.5)]
    b = [known(2, 0.7, "b"), known(1, 0.9, "b"), known(2, 0.9, "b")]
    found = curves([*a, *b])
    assert [curve.name for curve in found] == ["b", "a"]
    assert found[0].aup == pytest.approx(180)  # of two points at one rate the better ends the curve
    assert found[1].aup == pytest.approx(80)
    assert undominated([*a, *b]) == [b[2], a[1]]
    assert [len(group) for group in group_by_protocol([*a, known(1, 1, protocol={"n": 1})])] == [2, 1]


def test_tables_and_pages_show_every_record(records):
    text = decoding_table(records)
    assert text.count("topk 4") == 2
    assert (
        "lists: replace random, test split, 6 prompts (fewer than 30: the errors are rough), at most 8 tokens" in text
    )
    html = decoding_page(records, "A & B")
    assert "<h1>A &amp; B</h1>" in html
    assert html.count("<section>") == 2
    assert html.count("best possible with an exact model") == 2
    assert "&lt;x&gt;" in html
    assert "<x>" not in html
    assert html.count('class="mark') >= 12
    assert "<script" not in html


def test_runs_are_named_where_there_are_several(records):
    other = [dataclasses.replace(r, run="second") for r in records]
    assert "<toy>, topk 1" in decoding_table([*records, *other])
    assert "&lt;toy&gt;, topk" in decoding_page([*records, *other])


def command(pipeline, monkeypatch, tmp_path, *words):
    monkeypatch.setattr("gen.pipeline.load", lambda *_: pipeline)
    return main(["bench-decode", str(tmp_path), "-n", "3", *words])


def test_the_command_writes_the_page_and_the_records(pipeline, monkeypatch, tmp_path, capsys):
    words = [
        "--tasks",
        "sort",
        "--policies",
        "topk:2",
        "threshold:.9",
        "--kv-plan",
        "none",
        "dual",
        "--block-length",
        "4",
    ]
    assert command(pipeline, monkeypatch, tmp_path, *words) == 0
    found = collect_decoding([tmp_path / "decode.json"])
    assert [r.curve for r in found] == ["topk", "threshold", "topk, dual", "threshold, dual"]
    assert [r.decoding["kv_plan"] and r.decoding["kv_plan"]["name"] for r in found] == [None, None, "dual", "dual"]
    assert {r.decoding["block_schedule"]["length"] for r in found} == {4}
    assert found[2].computed < found[0].computed
    assert "threshold 0.9, dual" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "decode.html").read_text()
    again = found[0].command.split()
    assert again[:2] == ["gen", "bench-decode"]
    assert again[again.index("--kv-plan") + 1 :][:2] == ["none", "dual"]
    more = ["--tasks", "sort", "--policies", "topk:1", "--with", str(tmp_path / "decode.json")]
    assert command(pipeline, monkeypatch, tmp_path, *more, "--out", str(tmp_path / "more.html")) == 0
    assert (tmp_path / "more.html").read_text().count('class="entry"') == 4  # both show topk, on one curve


def test_several_runs_are_measured_on_questions_of_a_file(pipeline, monkeypatch, tmp_path, capsys):
    file, runs = tmp_path / "own.jsonl", []
    file.write_text("".join(json.dumps({"prompt": f"copy : {a} b =", "answer": "a"}) + "\n" for a in "acdef"))
    monkeypatch.setattr("gen.pipeline.load", lambda run, *_: dataclasses.replace(pipeline, name=run.name))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(str(tmp_path / name))
    words = ["--tasks", str(file), "--checker", "words", "--policies", "topk:1,4", "--gen-length", "4", "-n", "100"]
    assert main(["bench-decode", *runs, *words]) == 0
    found = collect_decoding([tmp_path / "one" / "decode.json"])
    assert [(r.run, r.label, r.n) for r in found] == [(m, f"topk {k}", 5) for m in ("one", "two") for k in (1, 4)]
    assert found[0].protocol["task"]["checker"] == "words"
    assert len({r.comparability for r in found}) == 1
    assert "AUP" in capsys.readouterr().out
    assert "--checker words" in found[0].command
    monkeypatch.setattr("gen.pipeline.load", lambda *_: pipeline)  # one name for both
    assert main(["bench-decode", *runs, *words, "--out", str(tmp_path / "both.html")]) == 0
    assert {r.run for r in collect_decoding([tmp_path / "both.json"])} == set(runs)
    assert main(["bench-decode", runs[0], "--tasks", "sort", "--checker", "exact"]) == 2
    assert "give --tasks FILE.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "srot"], "Did you mean 'sort'"),
        (["--policies", "thresold"], "Did you mean 'threshold'"),
        (["--out", "page.txt"], "is a .html file"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(pipeline, monkeypatch, tmp_path, capsys, words, told):
    assert command(pipeline, monkeypatch, tmp_path, *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "decode.json").exists()


def test_conversations_become_text_and_replies_are_read_as_text():
    class Letters:
        """A tokeniser of single letters."""

        eos_token_ids, mask_token_id, vocab_size = (255,), 256, 257

        def encode(self, text):
            return list(text.encode())

        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    task = WaitingLine("copy", n=4)
    words = Letters()
    net = (
        Text(vocab_size=257, length=512, width=8, depth=1, heads=1, mask_token_id=256, eos_token_ids=(255,))
        .build()
        .eval()
    )
    model = TextPipeline(net, words, Decoding(), 512)
    (record,) = measure_decoding(model, task, {"topk": {"topk 32": model.plan(policy=TopK(32))}}, n=4)
    assert record.protocol["task"]["source"] is None
    assert record.computed == pytest.approx(sum(len(q.text) for q in task.questions) / 4 + 32)
    words.chat = ChatTemplate("{% for m in messages %}{{ m.role[0] }}{% endfor %}")
    words.special_tokens, words.encode_template = (), lambda text, broken: words.encode(text)
    (record,) = measure_decoding(model, task, {"topk": {"topk 32": model.plan(policy=TopK(32))}}, n=4)
    assert record.computed == len("uau") + 32
