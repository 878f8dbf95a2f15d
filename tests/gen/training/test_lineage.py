"""The newest checkpoint of a run's own line is the model: neither the highest number nor a final/ left over."""

import json
import shutil

import pytest

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.pipeline import load
from gen.training.log import read_metrics
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny
from tests.gen.training.test_trainer import same, weights


class Killed(BaseException):
    """Ends a training as SIGKILL would, between two lines."""


def interrupted(folder, at, monkeypatch, **changes):
    """Train until a checkpoint of step `at` is complete, and stop there without another word."""
    prune = checkpoints.prune

    def stop(place, *args):
        prune(place, *args)
        if (place / checkpoints.checkpoint_name(at)).exists():
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "prune", stop)
        with pytest.raises(Killed):
            train(tiny(**changes), folder, quiet=True)


def steps_in(folder):
    return [manifest["step"] for manifest in checkpoints.lineage(folder / "checkpoints").values()]


def test_a_run_that_was_extended_is_not_its_old_end(tmp_path, monkeypatch):
    train(tiny(steps=4), tmp_path / "run", quiet=True)
    assert checkpoints.locate(tmp_path / "run") == tmp_path / "run" / "final"
    interrupted(tmp_path / "run", 6, monkeypatch, steps=8, save_every=2)
    assert load(tmp_path / "run").info["step"] == 6
    assert checkpoints.manifest_of(tmp_path / "run")["step"] == 6


def test_an_end_that_a_kill_left_out_is_written_by_the_next_call(tmp_path, monkeypatch):
    train(tiny(steps=4), tmp_path / "run", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tiny(steps=8), tmp_path / "run", quiet=True)
    assert load(tmp_path / "run").info["step"] == 8
    assert train(tiny(steps=8), tmp_path / "run", quiet=True).step == 8
    assert checkpoints.read(tmp_path / "run" / "final")["step"] == 8


def test_an_end_that_is_damaged_is_written_again(tmp_path):
    train(tiny(steps=2), tmp_path / "run", quiet=True)
    (tmp_path / "run/final/manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="final"):
        assert load(tmp_path / "run").info["step"] == 2
    train(tiny(steps=2), tmp_path / "run", quiet=True)
    assert checkpoints.read(tmp_path / "run" / "final")["step"] == 2


def test_going_back_leaves_the_line_that_was_left(tmp_path):
    folder = tmp_path / "run"
    train(tiny(steps=8, save_every=2, keep=9), folder, quiet=True)
    back = str(folder / "checkpoints/step-0000002")
    train(tiny(steps=7, save_every=4, keep=9), folder, resume=back, quiet=True)
    assert steps_in(folder) == [2, 4, 7]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [f"step-000000{i}" for i in (2, 4, 7)]
    assert load(folder).info["step"] == 7 and load(folder).info["line"] == [2]
    assert train(tiny(steps=9, keep=9), folder, quiet=True).step == 9
    train(tiny(steps=9), tmp_path / "whole", quiet=True)
    assert same(weights(folder), weights(tmp_path / "whole"))
    steps = [event["step"] for event in read_metrics(folder / "metrics.jsonl") if event["split"] == "train"]
    assert steps == list(range(1, 10))


def test_going_back_holds_though_it_is_killed_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train(tiny(steps=8, save_every=2, keep=9), folder, quiet=True)
    monkeypatch.setattr(Trainer, "step", lambda self, batches: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(tiny(steps=5), folder, resume=str(folder / "checkpoints/step-0000002"), quiet=True)
    monkeypatch.undo()
    assert load(folder).info["step"] == 2 and (folder / "checkpoints/step-0000008").exists()  # and what was is there
    assert train(tiny(steps=5), folder, quiet=True).step == 5
    assert steps_in(folder) == [2, 5] and load(folder).info["step"] == 5


def test_going_back_twice_and_forward_again(tmp_path):
    folder = tmp_path / "run"
    train(tiny(steps=6, save_every=1, keep=9), folder, quiet=True)
    shutil.copytree(folder / "checkpoints/step-0000006", tmp_path / "kept/step-0000006")
    for step, steps in ((4, 5), (2, 3)):
        train(tiny(steps=steps, keep=9), folder, resume=f"{folder}/checkpoints/step-000000{step}", quiet=True)
    assert steps_in(folder) == [1, 2, 3] and load(folder).info["line"] == [4, 2]
    train(tiny(steps=7, keep=9), folder, resume=str(tmp_path / "kept/step-0000006"), quiet=True)
    assert steps_in(folder) == [1, 2, 3, 6, 7] and load(folder).info["step"] == 7


def test_a_new_folder_goes_on_from_another_run_even_if_killed_at_once(tmp_path, monkeypatch):
    train(tiny(steps=4), tmp_path / "a", quiet=True)
    monkeypatch.setattr(Trainer, "step", lambda self, batches: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(tiny(steps=6), tmp_path / "b", resume=str(tmp_path / "a"), quiet=True)
    monkeypatch.undo()
    assert checkpoints.manifest_of(tmp_path / "b")["step"] == 4
    train(tiny(steps=6), tmp_path / "b", quiet=True)
    train(tiny(steps=6), tmp_path / "whole", quiet=True)
    assert same(weights(tmp_path / "b"), weights(tmp_path / "whole"))


def test_weights_alone_are_not_gone_on_from(tmp_path):
    folder = tmp_path / "run"
    train(tiny(steps=2), folder, quiet=True)
    with pytest.raises(UserError, match="without the optimiser's state"):
        train(tiny(steps=4), folder, resume=str(folder / "final"), quiet=True)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no checkpoints"):
        train(tiny(steps=4), folder, quiet=True)
    with pytest.raises(UserError, match="is itself a checkpoint"):
        train(tiny(steps=4), folder / "final", quiet=True)
    assert load(folder).info["step"] == 2


@pytest.mark.filterwarnings("ignore:passing over a damaged checkpoint")
def test_a_copy_under_another_name_is_passed_over_by_name(tmp_path):
    folder = tmp_path / "run"
    train(tiny(steps=4, save_every=2), folder, quiet=True)
    shutil.copytree(folder / "checkpoints/step-0000002", folder / "checkpoints/step-0000099")
    with pytest.warns(UserWarning, match="step-0000099 is of step 2"):
        assert load(folder).info["step"] == 4
    assert train(tiny(steps=5), folder, quiet=True).step == 5
    assert json.loads((folder / "final/manifest.json").read_text())["step"] == 5
