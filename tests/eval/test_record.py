"""Reading records from anywhere, and refusing what is none."""

import base64
import copy
import json
from dataclasses import replace

import pytest

from gen.config.errors import UserError
from gen.config.spec import convert, digest
from gen.eval.estimate import Estimate
from gen.eval.leaderboard import table
from gen.eval.metrics.accuracy import Accuracy
from gen.eval.metrics.fid import FID
from gen.eval.metrics.kid import KID
from gen.eval.metrics.nearest import Nearest
from gen.eval.pages.leaderboard import leaderboard_page
from gen.eval.ranking import ranking
from gen.eval.record import (
    UNKNOWN,
    Measurement,
    Neighbours,
    PerClass,
    Record,
    from_json,
    to_json,
    write_record,
)
from gen.eval.sampler_text import sampler_text
from gen.eval.sources import collect

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()


def measured(metric, value, se=0.1, floor=None):
    """A number as evaluate records it."""
    (column,) = metric.columns
    return Measurement(column, {"name": column.key}, Estimate(value, se, 1000), floor and Estimate(*floor, 1437))


def made(label="teacher", fid=2.0, se=0.1, nfe=8.0, n=1000, **changes):
    """A record as evaluate writes it, with the numbers that matter to a test."""
    metrics = [
        measured(FID(), fid, se, floor=(0.5, 0.06)),
        measured(KID(), fid / 2, se / 2, floor=(-0.1, 0.03)),
        measured(Accuracy(), 0.98, 0.01),
        measured(Nearest(), 1.1, 0.01, floor=(1.04, 0.01)),
    ]
    reference = {"data": {"name": "digits"}, "split": "test", "n": 360, "shape": [1, 8, 8], "fingerprint": "ab"}
    sampler = {"solver": {"name": "heun"}, "steps": 4, "grid": {"name": "linear"}, "guide": None}
    record = {
        "run": "teacher",
        "label": label,
        "sampler": sampler,
        "nfe": nfe,
        "n": n,
        "seed": 0,
        "reference": reference,
        "extractor": {"name": "digits_cnn", "sha256": "4d22", "dim": 64},
        "rounding": "uint8, clamped, half to even",
        "labels": "balanced, i mod 10",
        "metrics": metrics,
        "floor": {"n": 1437, "strip": PNG},
        "speed": {"images_per_second": 8000 / nfe, "ms_per_image": nfe / 8},
        "params": 317700,
        "device": "a processor, 1 thread",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "gen evaluate runs/teacher --steps 4",
        "strip": PNG,
    }
    return convert(record | changes, Record, "made")


def test_collects_from_every_kind_of_source(tmp_path) -> None:
    records = [made(str(i), fid=i + 1.0) for i in range(4)]
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    for record in records[:2]:
        write_record(record, run / "eval")
    single = tmp_path / "one.json"
    single.write_text(json.dumps(to_json(records[2])))
    listed = tmp_path / "list.toml"
    listed.write_text('[[entry]]\npath = "run"\n[[entry]]\npath = "one.json"\nlabel = "renamed"\n')
    names = [r.label for r in collect([run, str(single), records[3], to_json(records[3])])]
    assert sorted(names) == ["0", "1", "2", "3"]
    assert sorted(r.label for r in collect(listed)) == ["0", "1", "renamed"]
    assert collect(records[0]) == [records[0]]
    write_record(records[3], tmp_path / "samples.npz.eval")
    assert sorted(r.label for r in collect(tmp_path)) == ["0", "1", "3"]  # a folder of what was evaluated


def test_a_record_holds_classes_and_neighbours() -> None:
    per_class = PerClass(FID().columns[0], ("cat", "dog"), (Estimate(3.0, 0.1, 50), None))
    neighbours = Neighbours(PNG, (0.5, 0.25), "features of digits_cnn")
    record = replace(made(), protocol="adm-imagenet256", per_class=(per_class,), neighbours=neighbours)
    assert from_json(json.loads(json.dumps(to_json(record))), Record, "made") == record
    with pytest.raises(UserError, match="fid: 2 numbers of 1 classes"):
        replace(per_class, classes=("cat",))
    with pytest.raises(UserError, match="no PNG"):
        replace(record, neighbours=replace(neighbours, strip="AAAA"))


def test_refuses_what_is_no_record(tmp_path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.toml").write_text("x = 1")
    (tmp_path / "entry.toml").write_text('[[entry]]\npath = "a"\nname = "b"\n')
    (tmp_path / "flat.toml").write_text("entry = [1, 2]")
    (tmp_path / "path.toml").write_text("[[entry]]\npath = 5\n")
    (tmp_path / "label.toml").write_text('[[entry]]\npath = "a"\nlabel = 7\n')
    (tmp_path / "self.toml").write_text('[[entry]]\npath = "self.toml"\n')
    (tmp_path / "there.toml").write_text('[[entry]]\npath = "back.toml"\n')
    (tmp_path / "back.toml").write_text('[[entry]]\npath = "empty/../there.toml"\n')
    (tmp_path / "empty").mkdir()
    for source, says in (
        (tmp_path / "bad.json", "bad.json is no JSON"),
        (tmp_path / "bad.toml", "tables [[entry]] and [[published]] and nothing else"),
        (tmp_path / "entry.toml", "entry.toml: unknown key 'name' of ListEntry. Allowed: label, path."),
        (tmp_path / "flat.toml", "flat.toml: ListEntry: got 1, expected ListEntry"),
        (tmp_path / "path.toml", "path.toml: ListEntry.path: got 5, expected text"),
        (tmp_path / "label.toml", "label.toml: ListEntry.label: got 7, expected text or none"),
        (tmp_path / "self.toml", "leads back to itself"),
        (tmp_path / "there.toml", "leads back to itself"),
        (tmp_path / "empty", "holds no evaluations; first: gen evaluate"),
        (tmp_path / "none.json", "none.json does not exist"),
        ([], "no evaluation records"),
        ({"schema": 1}, "the record '?' is none that gen reads: schema 1; allowed: schema 3"),
        ({"schema": 3}, "does not match its own sha256"),
    ):
        with pytest.raises(UserError) as error:
            collect(source)
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("n",), 999),
        (("metrics", 0, "estimate", "value"), 0.01),
        (("metrics", 1, "floor", "se"), None),
        (("extractor", "sha256"), "other"),
        (("command",), "gen evaluate runs/other"),
        (("sha256",), "00"),
        (("sha256",), None),
    ],
)
def test_an_edited_file_is_refused(path, value, tmp_path) -> None:
    file = write_record(made(), tmp_path)
    content = json.loads(file.read_text())
    assert collect(file) == [made()]
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        collect(file)
    assert str(error.value) == f"{file} does not match its own sha256: it was edited, or is damaged"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("metrics", 0, "estimate", "value"), "two", "Estimate.value: got 'two', expected a number"),
        (("metrics", 0, "estimate", "value"), None, "Estimate.value: got None, expected a number"),
        (("metrics", 0, "estimate", "value"), True, "Estimate.value: got True, expected a finite number"),
        (("metrics", 0, "estimate", "mean"), 1.0, "unknown key 'mean' of Estimate"),
        (("metrics", 0, "column", "higher_is_better"), "yes", "higher_is_better: got 'yes'"),
        (("metrics",), [], "at least one measurement, and each once; this one has []"),
        (("label",), ["a"], "Record.label: got ['a'], expected text"),
        (("floor",), [1], "Record.floor: got [1]"),
        (("reference",), None, "Record.reference: got None"),
        (("reference", "data"), "digits", "ReferenceInfo.data: got 'digits'"),
        (("strip",), '"><script>', "no PNG"),
        (("floor", "strip"), base64.b64encode(b"GIF89a").decode(), "no PNG"),
    ],
)
def test_nonsense_is_refused_even_if_it_is_sealed(path, value, says) -> None:
    content = copy.deepcopy(to_json(made()))
    del content["sha256"]
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError) as error:
        from_json({**content, "sha256": digest(content)}, Record, "it")
    assert str(error.value).startswith("it: ") and says in str(error.value) and "\n" not in str(error.value)


def test_numbers_are_finite() -> None:
    with pytest.raises(UserError, match=r"metrics\[0\]\.estimate\.value is nan, expected a finite number"):
        made(fid=float("nan"))
    with pytest.raises(UserError, match=r"Speed\.images_per_second: got inf, expected a finite number"):
        made(speed={"images_per_second": float("inf"), "ms_per_image": 1.0})


def test_comparability_is_the_protocol_and_identity_the_samples() -> None:
    record = made()
    same = replace(record, label="other", seed=1, sampler={}, metrics=record.metrics[:1])
    assert same.comparability == record.comparability and same.identity != record.identity
    for changes in ({"n": 999}, {"extractor": {"name": "x", "sha256": "", "dim": 1}}):
        assert made(**changes).comparability != record.comparability
    elsewhere = replace(record.reference, data={"name": "npz", "path": "/elsewhere/ref.npz"})
    assert replace(record, reference=elsewhere).comparability == record.comparability  # the content is the same
    other = replace(record.reference, fingerprint="another")
    assert replace(record, reference=other).comparability != record.comparability
    assert replace(record, metrics=record.metrics[:1], date=None).identity == record.identity


def test_numbers_are_found_by_their_key() -> None:
    assert made().estimate("fid") == Estimate(2.0, 0.1, 1000)
    with pytest.raises(UserError, match=r"no metric 'fdi' was measured\. Did you mean 'fid'"):
        made().estimate("fdi")


def test_numbers_are_shown_to_two_digits_of_their_error() -> None:
    shown = {(1.19231, 0.1234): "1.19 ± 0.12", (0.0, 2.8e-14): "0 ± 2.8e-14", (1.5e-9, 3e-9): "1.5e-09 ± 3.0e-09"}
    for (value, se), text in shown.items():
        assert Estimate(value, se, 50).text() == text


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        made().n = 3  # type: ignore[misc]


def test_says_the_sampler_in_a_few_words() -> None:
    assert sampler_text(made().sampler) == "heun, 4 steps"
    guide = {"name": "cfg", "scale": 1.5, "interval": None}
    sampler = {"solver": {"name": "euler"}, "steps": 1, "grid": {"name": "karras", "rho": 7.0}, "guide": guide}
    assert sampler_text(sampler) == "euler, 1 step, karras(rho=7.0) grid, cfg(scale=1.5)"
    assert sampler_text({}) == ""
    for engine, text in (
        ({"name": "fused", "about": "fused, bf16"}, "fused, bf16"),
        ({"name": "own"}, "own"),
        ("x", "x"),
    ):
        assert sampler_text({"solver": {"name": "euler"}, "engine": engine}) == f"euler, {text}"
    grid = {"name": "searched", "file": "g.json", "times": [1.0, 0.5, 0.0]}
    cache = {"name": "searched", "file": "g.json", "sha256": "ab"}
    sampler = {"solver": {"name": "euler"}, "steps": 2, "grid": grid, "cache": cache}
    assert sampler_text(sampler) == "euler, 2 steps, searched(file=g.json) grid, searched(file=g.json)"


def test_samples_of_another_tool_share_a_table_with_ours() -> None:
    shared = {"rounding": UNKNOWN, "labels": UNKNOWN, "sampler": {}, "speed": None, "params": None}
    info = {"kind": "folder", "format": "png", "available": 5000, "fingerprint": "cd", "counts": [500, 500]}
    theirs = replace(made("theirs", **shared, samples=info), nfe=None)
    assert theirs.comparability == made().comparability and theirs.identity != made("theirs", **shared).identity
    assert from_json(json.loads(json.dumps(to_json(theirs))), Record, "theirs") == theirs
    page = leaderboard_page(ranking([theirs, made(fid=3.0)]), "Both")
    assert "<b>theirs</b><small>folder of png, 1,000 of 5,000</small>" in page
    assert "labels unknown" in page and "rounding unknown" in page and "theirs" in table([theirs, made()])
