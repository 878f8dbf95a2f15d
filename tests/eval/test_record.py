"""Reading records from anywhere, and refusing what is none."""

import base64
import copy
import json

import pytest

from gen.config.errors import UserError
from gen.eval.record import check, collect, comparability, identity, sampler_text

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()


def made(label="teacher", fid=2.0, se=0.1, nfe=8.0, n=1000, **changes):
    """A record as evaluate writes it, with the numbers that matter to a test."""
    record = {
        "schema": 1,
        "run": "teacher",
        "label": label,
        "checkpoint": None,
        "sampler": {"solver": {"name": "heun"}, "steps": 4, "grid": {"name": "linear", "start": 1.0}, "guide": None},
        "nfe": nfe,
        "n": n,
        "seed": 0,
        "reference": {"data": {"name": "digits"}, "split": "test", "n": 360, "shape": [1, 8, 8], "fingerprint": "ab"},
        "extractor": {"name": "digits_cnn", "sha256": "4d22", "dim": 64},
        "rounding": "uint8, clamped, half to even",
        "labels": "balanced, i mod 10",
        "metrics": {
            "fid": {"value": fid, "se": se},
            "kid": {"value": fid / 2, "se": se / 2},
            "accuracy": {"value": 0.98, "se": 0.01},
            "nearest": {"value": 1.1, "se": 0.01, "floor": 1.04},
        },
        "floor": {"fid": {"value": 0.5, "se": 0.06}, "kid": {"value": -0.1, "se": 0.03}, "n": 1437, "strip": PNG},
        "speed": {"images_per_second": 8000 / nfe, "ms_per_image": nfe / 8},
        "params": 317700,
        "device": "a processor, 1 thread",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "gen evaluate runs/teacher --steps 4",
        "strip": PNG,
    } | changes
    return record | {"comparability": comparability(record)}


def test_collects_from_every_kind_of_source(tmp_path) -> None:
    records = [made(str(i), fid=i + 1.0) for i in range(4)]
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    for record in records[:2]:
        (run / "eval" / f"{identity(record)}.json").write_text(json.dumps(record))
    single = tmp_path / "one.json"
    single.write_text(json.dumps(records[2]))
    listed = tmp_path / "list.toml"
    listed.write_text('[[entry]]\npath = "run"\n[[entry]]\npath = "one.json"\nlabel = "renamed"\n')
    names = [r["label"] for r in collect([run, str(single), records[3], records[3]])]
    assert sorted(names) == ["0", "1", "2", "3"]
    assert sorted(r["label"] for r in collect(listed)) == ["0", "1", "renamed"]
    assert collect(records[0]) == [records[0]]


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
    (tmp_path / "nan.json").write_text(json.dumps(made(fid=float("nan"))))
    for source, says in (
        (tmp_path / "bad.json", "bad.json cannot be read"),
        (tmp_path / "bad.toml", "tables [[entry]] and nothing else"),
        (tmp_path / "entry.toml", "an entry has path and label"),
        (tmp_path / "flat.toml", "an entry is 1, expected a table [[entry]]"),
        (tmp_path / "path.toml", "path is 5, expected text"),
        (tmp_path / "label.toml", "label is 7, expected text"),
        (tmp_path / "self.toml", "leads back to itself"),
        (tmp_path / "there.toml", "leads back to itself"),
        (tmp_path / "empty", "holds no evaluations; first: gen evaluate"),
        (tmp_path / "none.json", "none.json does not exist"),
        (tmp_path / "nan.json", "metrics.fid.value is nan, expected a finite number"),
        ([], "no evaluation records"),
        ({"schema": 2}, "no evaluation record of schema 1: it is 2"),
    ):
        with pytest.raises(UserError) as error:
            collect(source)
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("n",), 999, "does not belong to its content"),
        (("extractor", "sha256"), "other", "does not belong to its content"),
        (("metrics", "fid", "value"), "2.0", "expected a finite number"),
        (("metrics", "fid", "value"), None, "it lacks metrics.fid.value"),
        (("metrics", "kid", "value"), True, "expected a finite number"),
        (("speed", "images_per_second"), float("inf"), "expected a finite number"),
        (("label",), ["a"], "label is ['a'], expected text"),
        (("floor",), [1], "floor is [1], expected an object"),
        (("reference",), None, "reference is None, expected an object"),
        (("reference", "data"), "digits", "expected an object and a list"),
        (("strip",), '"><script>', "no PNG"),
        (("floor", "strip"), base64.b64encode(b"GIF89a").decode(), "no PNG"),
    ],
)
def test_refuses_altered_records(path, value, says) -> None:
    record = copy.deepcopy(made())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError) as error:
        check(record, "it")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_says_the_sampler_in_a_few_words() -> None:
    assert sampler_text(made()) == "heun, 4 steps"
    guide = {"name": "cfg", "scale": 1.5, "interval": None}
    sampler = {"solver": {"name": "euler"}, "steps": 1, "grid": {"name": "karras", "rho": 7.0}, "guide": guide}
    assert sampler_text(made(sampler=sampler)) == "euler, 1 step, karras(rho=7.0) grid, cfg(scale=1.5)"
    assert sampler_text(made(sampler={})) == ""
    for engine, told in (
        ({"name": "fused", "about": "fused, bf16"}, "fused, bf16"),
        ({"name": "own"}, "own"),
        ("x", "x"),
    ):
        assert sampler_text(made(sampler={"solver": {"name": "euler"}, "engine": engine})) == f"euler, {told}"
    grid = {"name": "searched", "file": "g.json", "times": [1.0, 0.5, 0.0]}
    cache = {"name": "searched", "file": "g.json", "sha256": "ab"}
    sampler = {"solver": {"name": "euler"}, "steps": 2, "grid": grid, "cache": cache}
    assert sampler_text(made(sampler=sampler)) == "euler, 2 steps, searched(file=g.json) grid, searched(file=g.json)"
