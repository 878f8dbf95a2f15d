"""Checkpoints that are written while training goes on."""

import os
import threading
import time

import pytest
import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.background import BackgroundJob, Snapshot
from gen.training.distillation import distill
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny


def tensors(folder):
    manifest = checkpoints.read(folder)
    return {f"{n}/{k}": v for n in manifest["files"] for k, v in checkpoints.read_tensors(folder, n, manifest).items()}


def test_a_checkpoint_has_the_state_of_its_step_however_long_it_is_written(tmp_path, monkeypatch):
    gone_on, write, step, said = threading.Event(), checkpoints.write, Trainer.step, []

    def late(folder, *args):
        if folder.name == "step-0000002":
            assert gone_on.wait(60)
            said.append(sorted(path.name for path in folder.parent.glob("step-*")))
        return write(folder, *args)

    def counted(self, batches):
        logs = step(self, batches)
        if self.steps_done == 4:
            gone_on.set()
        return logs

    run = tiny(steps=5, save_every=2, keep=3)
    train(run, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", late)
        patch.setattr(Trainer, "step", counted)
        train(run, tmp_path / "late", quiet=True)
    assert said == [[]]  # nothing before it is whole
    for name in ("step-0000002", "step-0000004", "step-0000005"):
        ours, theirs = (tensors(tmp_path / which / "checkpoints" / name) for which in ("late", "whole"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_what_a_write_raises_ends_the_training_at_the_next_step(tmp_path, monkeypatch):
    step, steps = Trainer.step, []

    def fail(folder, *args):
        raise OSError(28, "No space left on device")

    def counted(self, batches):
        steps.append(self.steps_done)
        if self.steps_done == 2:
            self.saver._job._thread.join()
        return step(self, batches)

    monkeypatch.setattr(checkpoints, "write", fail)
    monkeypatch.setattr(Trainer, "step", counted)
    with pytest.raises(
        UserError, match=r"step 2 could not be written: No space left on device\. No checkpoint is left"
    ):
        train(tiny(steps=50, save_every=2), tmp_path / "run", quiet=True)
    assert steps in ([0, 1], [0, 1, 2])  # as soon as it has failed


def test_one_job_at_a_time_and_its_error_once():
    job, order = BackgroundJob(), []
    release = threading.Event()
    job.start(lambda: (release.wait(60), order.append("first")))
    threading.Timer(0.05, release.set).start()
    job.start(lambda: order.append("second"))
    job.wait()
    assert order == ["first", "second"]
    job.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.wait()
    job.check()
    job.wait()


def test_a_snapshot_keeps_its_memory():
    snapshot, x = Snapshot(), torch.arange(6.0).reshape(2, 3).T
    snapshot.reserve({"a": {"x": x}})
    memory = snapshot._memory["a", "x"].data_ptr()
    for _ in range(2):
        copy = snapshot.copy("a", "x", x)
        assert copy.data_ptr() == memory != x.data_ptr() and copy.is_contiguous() and torch.equal(copy, x)
        x += 1
    assert snapshot.copy("a", "x", x.double()).dtype == torch.float64


@pytest.mark.slow
def test_a_student_of_several_roles_that_is_killed_while_it_is_saved_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    teacher, changes = tmp_path / "teacher", {"steps": 6, "save_every": 2, "keep": 3, "validate_every": 0}
    train(tiny(steps=2), teacher, quiet=True)
    distill("dmd2", teacher, tmp_path / "whole", changes=changes, quiet=True)
    write, step = checkpoints.write, Trainer.step

    def slow(folder, *args):
        if folder.name == "step-0000004":
            time.sleep(60)
        return write(folder, *args)

    def killed(self, batches):
        if self.steps_done == 5:
            os._exit(9)
        return step(self, batches)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(checkpoints, "write", slow)
        monkeypatch.setattr(Trainer, "step", killed)
        try:
            distill("dmd2", teacher, tmp_path / "killed", changes=changes, quiet=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert checkpoints.newest(tmp_path / "killed/checkpoints").name == "step-0000002"
    distill("dmd2", teacher, tmp_path / "killed", changes=changes, quiet=True)
    ours, theirs = (tensors(tmp_path / which / "checkpoints/step-0000006") for which in ("killed", "whole"))
    assert len({key.partition("/")[0] for key in ours}) > 2
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
