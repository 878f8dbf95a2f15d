"""Faults while a run is trained: another writer, a full disk, a damaged record, a folder that is gone, a kill."""

import os
import shutil
from pathlib import Path

import pytest

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.writing import partial_name
from gen.pipeline import load
from gen.training.log import read_metrics
from gen.training.trainer import Trainer, train
from tests.gen.config.test_writing import dead_pid
from tests.gen.tiny import tiny
from tests.gen.training.test_trainer import same, weights

ROOT = Path(__file__).resolve().parents[3]


def test_a_second_training_in_a_folder_is_one_line_and_touches_nothing(tmp_path, monkeypatch):
    train(tiny(steps=1), tmp_path / "teacher", quiet=True)
    folder, after_step, found = tmp_path / "run", Trainer._after_step, []

    def second(trainer, logs):
        after_step(trainer, logs)
        run = (folder / "run.json").read_text()
        for call in (
            lambda: train(tiny(seed=1), folder, quiet=True),
            lambda: gen.distill("reflow", tmp_path / "teacher", folder, quiet=True),
        ):
            with pytest.raises(UserError, match=rf"run is in use: process {os.getpid()} on ") as error:
                call()
            assert "\n" not in str(error.value) and (folder / "run.json").read_text() == run
        found.append(sorted(path.name for path in folder.iterdir()))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", second)
        train(tiny(steps=1, validate_every=0), folder, quiet=True)
    assert found == [[".lock", "metrics.jsonl", "run.json"]]
    assert train(tiny(steps=1, validate_every=0), folder, quiet=True).step == 1


@pytest.mark.parametrize("what", ["net.safetensors", "metrics.jsonl", "final"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, what):
    folder = tmp_path / "run"
    train(tiny(steps=3), folder, quiet=True)
    full = OSError(28, "No space left on device")
    owner, name, when = {
        "net.safetensors": (checkpoints, "write_file", lambda *args: True),
        "metrics.jsonl": ("gen.training.log.MetricsFile.write", None, lambda *args: True),
        "final": (checkpoints, "write", lambda folder, *args: folder.name == "final"),
    }[what]
    target = owner if isinstance(owner, str) else f"{owner.__name__}.{name}"
    with monkeypatch.context() as patch:
        real = checkpoints.write

        def fail(*args, **kwargs):
            if when(*args):
                raise full
            return real(*args, **kwargs)

        patch.setattr(target, fail)
        with pytest.raises(UserError, match=r"could not be written: No space left on device\. Last good .*step-") as e:
            train(tiny(), folder, quiet=True)
    assert "\n" not in str(e.value) and not list(folder.rglob(".*"))
    assert load(folder).info["step"] == (6 if what == "final" else 3)
    train(tiny(), folder, quiet=True)
    train(tiny(), tmp_path / "whole", quiet=True)
    assert same(weights(folder), weights(tmp_path / "whole"))
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize(
    "tail", [b'{"split": "tr', b"\x00\xff\x00\n", b"5\n", b"[" * 10**5 + b"\n", b'{"step": 2', b'{"a": 1}\n']
)
def test_a_damaged_record_is_gone_on_with(tmp_path, capsys, tail):
    folder = tmp_path / "run"
    train(tiny(steps=3), folder, quiet=True)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    train(tiny(steps=4), folder)
    assert "metrics.jsonl: left out 1 damaged line" in capsys.readouterr().err
    steps = [event["step"] for event in read_metrics(folder / "metrics.jsonl") if event["split"] == "train"]
    assert steps == [1, 2, 3, 4]


def test_a_folder_that_is_removed_while_it_is_trained_is_mentioned(tmp_path, monkeypatch, capsys):
    folder, step = tmp_path / "run", Trainer.step

    def remove(self, batches):
        if self.steps_done == 3:
            shutil.rmtree(folder)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", remove)
    train(tiny(save_every=5), folder)
    assert "run was removed while it was trained: written again" in capsys.readouterr().err
    assert load(folder).info["step"] == 6 and (folder / "run.json").exists()
    assert [event["step"] for event in read_metrics(folder / "metrics.jsonl")] == [6, 6]
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", r"No checkpoint is left in \S+run; \S+run is a file now: move it away, .* start anew$"),
        ("checkpoints", r"No checkpoint .* \S+/checkpoints is a file now: move it away, .* start anew$"),
        (
            "samples",
            r"samples/step-0000005 could .* Last good .*: \S+4; \S+/samples is a file now: .* from there$",
        ),
        ("final", r"final/ could .* Last good checkpoint: \S+6; \S+/final is a file now: .* from there$"),
    ],
)
def test_a_file_where_a_folder_was_is_one_line_that_says_what_is_safe(tmp_path, monkeypatch, name, said):
    folder, step = tmp_path / "run", Trainer.step

    def replace(self, batches):
        if self.steps_done == 4:
            self.saver.wait()
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).write_text("a file")
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", replace)
    with pytest.raises(UserError, match=said):
        train(tiny(save_every=2, sample_every=5), folder, quiet=True)
    assert (folder / name).read_text() == "a file"


def test_a_folder_that_can_no_longer_be_written_is_one_line(tmp_path, monkeypatch):
    """As on a file system that the system made read-only; its lock cannot be removed either."""
    folder = tmp_path / "run"
    train(tiny(steps=3), folder, quiet=True)
    readonly = OSError(30, "Read-only file system")

    def fail(*args, **kwargs):
        raise readonly

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_file", fail)
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(UserError, match=r"Read-only file system\. Last good .*step-0000003; make it writable, and"):
            train(tiny(), folder, quiet=True)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="file is a file: give the folder of a run, or a new one"):
        train(tiny(), tmp_path / "file", quiet=True)


def test_what_a_kill_left_is_removed_by_the_next_start(tmp_path):
    folder = tmp_path / "run"
    train(tiny(steps=2), folder, quiet=True)
    gone = dead_pid()
    shutil.copytree(
        folder / "checkpoints/step-0000002", folder / "checkpoints" / partial_name("step-0000003", pid=gone)
    )
    shutil.copytree(folder / "final", folder / partial_name("final", pid=gone))
    (folder / partial_name("run.json", pid=gone)).touch()
    (folder / "checkpoints/step-0000002").rename(folder / "checkpoints" / partial_name("step-0000002", "aside", gone))
    assert train(tiny(steps=3), folder, quiet=True).step == 3
    assert not list(folder.rglob(".*"))
    train(tiny(steps=3), tmp_path / "whole", quiet=True)
    assert same(weights(folder), weights(tmp_path / "whole"))


def test_a_lock_of_a_process_that_was_killed_does_not_stop_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text(f"process {dead_pid()} on {os.uname().nodename}, since then,")
    assert train(tiny(steps=1), tmp_path / "run", quiet=True).step == 1
