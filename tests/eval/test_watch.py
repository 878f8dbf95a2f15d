"""The page of runs that train: what it shows of runs that go on, that ended and that were stopped."""

import json
import re

import pytest

import gen.cli.watch
from gen.cli import main
from gen.config.writing import Lock
from gen.eval.pages.watch import MOST, WatchedRun, find_runs, watch_page
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "digits"
    train(tiny(steps=4, sample_every=2, validate_every=2), folder, quiet=True)
    return folder


def made(folder, steps, events, total=100):
    """A run folder of events (step, loss)."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": {"steps": total}}))
    lines = [{"step": s, "split": "train", "loss": loss, "seconds": s / 2} for s, loss in events]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return WatchedRun(folder, folder.name)


def test_a_run_shows_its_curves_its_facts_and_its_samples(trained) -> None:
    page = watch_page(find_runs([trained]))
    assert page.count("samples after") == 2
    assert page.count("<polyline") == 6  # loss, val_loss, speed, lr, gradients, waiting
    assert all(
        re.search(rf"<dt>{name}</dt>", page)
        for name in ("step", "time", "loss", "val_loss", "images/s", "data wait", "peak MiB")
    )
    assert "4 of 4" in page and "finished" in page and 'http-equiv="refresh"' not in page
    assert "http:" not in page and "https:" not in page and "<script" not in page


def test_lines_are_means_of_neighbours(tmp_path) -> None:
    run = made(tmp_path / "long", 4000, [(s, float(s % 2)) for s in range(1, 4001)])
    curve = run.curve("loss")
    assert len(curve) <= MOST and all(0.4 < p.y < 0.6 for p in curve)
    short = made(tmp_path / "short", 3, [(1, 3.0), (2, 2.0), (3, 1.0)]).curve("loss")
    assert [(p.x, p.y) for p in short] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_who_holds_the_lock_is_running_and_the_rest_of_the_time_is_told(tmp_path) -> None:
    run = made(tmp_path / "a", 20, [(s, 1.0) for s in range(1, 21)])
    assert run.state == "stopped" and "to go" not in run.facts
    with Lock(tmp_path / "a" / ".lock", tmp_path / "a"):
        again = WatchedRun(run.folder, "a")
        assert again.state == "running" and again.facts["to go"] == "40 s" and again.facts["time"] == "10 s"
    (tmp_path / "a" / ".lock").write_text("process 1 on elsewhere, since 2026,")
    assert WatchedRun(run.folder, "a").state == "running on elsewhere"
    (tmp_path / "a" / ".lock").write_text("process 99999999 on nowhere")
    assert made(tmp_path / "b", 5, [(5, 1.0)], total=5).state == "finished"
    empty = made(tmp_path / "c", 0, [])
    (tmp_path / "c" / "metrics.jsonl").unlink()
    assert empty.step == 0 and "<progress" in watch_page([empty])


def test_a_folder_of_runs_is_all_of_them_and_equal_names_are_told_apart(tmp_path) -> None:
    for where in ("one/run", "two/run", "two/<b>"):
        made(tmp_path / where, 1, [(1, 1.0)])
    names = [run.name for run in find_runs([tmp_path / "one", tmp_path / "two", tmp_path / "two/run"])]
    assert names == [str(tmp_path / "one/run"), "<b>", str(tmp_path / "two/run")]
    assert "<b>" not in watch_page(find_runs([tmp_path / "two"])).partition("<footer>")[0]


def test_the_page_is_written_anew_until_all_have_ended(tmp_path, monkeypatch, capsys) -> None:
    made(tmp_path / "a", 1, [(1, 1.0)])
    lock, pages, out = Lock(tmp_path / "a" / ".lock", tmp_path / "a"), [], tmp_path / "page.html"

    def later(seconds):
        assert seconds == 7
        pages.append(out.read_text())
        if len(pages) == 2:
            lock.release()

    monkeypatch.setattr(gen.cli.watch.time, "sleep", later)
    assert main(["watch", str(tmp_path / "a"), "--every", "7", "--out", str(out)]) == 0
    assert all('<meta http-equiv="refresh" content="7' in page for page in pages) and len(pages) == 2
    assert "refresh" not in out.read_text() and capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize("content", ["{}", "[]", '{"run": 3}', '{"run": {"steps": "many"}}'])
def test_a_folder_whose_run_says_no_steps_is_refused_in_one_line(tmp_path, capsys, content) -> None:
    (tmp_path / "run.json").write_text(content)
    assert main(["watch", str(tmp_path), "--once", "--out", str(tmp_path / "p.html")]) == 2
    assert "it does not say its steps" in capsys.readouterr().err
