"""Of several processes one is killed: the others end, in one line that says how to go on, and the run does."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from gen.config import checkpoints
from gen.config.checkpoints import write_json
from gen.training.run import run_spec
from tests.gen.tiny import tiny
from tests.gen.training.test_processes import apart

STEP = """
from gen.training.trainer import Trainer
after_step = Trainer._after_step
def killed(self, logs):
    if os.environ["RANK"] == "1" and self.steps_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    after_step(self, logs)
Trainer._after_step = killed
"""
SHARDS = """
from gen.config import checkpoints
write_files = checkpoints.write_files
def killed(folder, unfinished, files, beside=None):
    if os.environ["RANK"] == "1" and folder.name == "step-0000004":
        write_files(folder, unfinished, dict(list(files.items())[:1]))
        os.kill(os.getpid(), signal.SIGKILL)
    return write_files(folder, unfinished, files, beside)
checkpoints.write_files = killed
"""
LATE = """
import threading
from gen.config import checkpoints
from gen.training.trainer import Trainer
write_files, step, gone_on = checkpoints.write_files, Trainer.step, threading.Event()
def late(folder, unfinished, files, beside=None):
    if folder.name == "step-0000002":
        assert gone_on.wait(60)
    return write_files(folder, unfinished, files, beside)
def counted(self, batches):
    logs = step(self, batches)
    if self.steps_done == 4:
        assert not list(self.folder.glob("checkpoints/step-*"))
        gone_on.set()
    return logs
checkpoints.write_files, Trainer.step = late, counted
"""
FULL = """
from gen.config import checkpoints
write_files = checkpoints.write_files
def full(folder, unfinished, files, beside=None):
    if os.environ["RANK"] == "1" and folder.name == "step-0000004":
        raise OSError(28, "No space left on device")
    return write_files(folder, unfinished, files, beside)
checkpoints.write_files = full
"""
CODE = """
import os, signal, sys
from gen.cli import main
{}
raise SystemExit(main(["train", sys.argv[1], "--out", sys.argv[2], "--quiet"]))
"""


def launched(run, folder, change="", n=2):
    """Processes of `gen train`: their exit codes, and what the first one says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    write_json(folder.with_suffix(".json"), {"run": run_spec(run)})
    command = [sys.executable, "-c", CODE.format(change), str(folder.with_suffix(".json")), str(folder)]
    every = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in map(str, range(n))
    ]
    said = [process.communicate(timeout=120)[1] for process in every]
    return [process.returncode for process in every], said[0]


def check_said(said):
    assert [line for line in said.splitlines() if line.startswith("gen: ")] == [
        "gen: another process of this run has ended, whose own message says why; run this again to go on"
    ]
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_one_line(tmp_path):
    codes, said = launched(tiny(steps=1000, validate_every=0), tmp_path / "run", STEP)
    assert codes == [1, -9]
    check_said(said)


@pytest.mark.slow
def test_one_that_is_killed_while_it_writes_its_shards_leaves_the_checkpoint_before(tmp_path):
    """Shards are written while training goes on; then 1, 2 and 4 processes go on from what is left."""
    run = tiny(validate_every=0, save_every=2, shard=True, checkpoints="sharded", keep=3)
    codes, said = launched(run, tmp_path / "run", SHARDS)
    assert codes == [1, -9]
    check_said(said)
    assert checkpoints.newest(tmp_path / "run/checkpoints").name == "step-0000002"
    for n in (1, 4):
        shutil.copytree(tmp_path / "run", tmp_path / str(n))
    for folder, change, n in [("run", "", 2), ("whole", LATE, 2), ("1", "", 1), ("4", "", 4)]:
        codes, said = launched(run, tmp_path / folder, change, n)
        assert codes == [0] * n, said
    ours, theirs = (checkpoints.read(tmp_path / folder / "checkpoints/step-0000006") for folder in ("run", "whole"))
    assert ours["files"] == theirs["files"] and "net-00002-of-00002.safetensors" in ours["files"]
    early = [checkpoints.read(tmp_path / folder / "checkpoints/step-0000002")["files"] for folder in ("run", "whole")]
    assert early[0] == early[1]  # the state of its step, however late it was written
    assert not list((tmp_path / "run").rglob(".*"))
    for n in ("1", "4"):
        assert apart(tmp_path / "whole/final", tmp_path / n / "final") < 2e-5
    assert "net.safetensors" in checkpoints.read(tmp_path / "1/final")["files"]


@pytest.mark.slow
def test_one_that_cannot_write_its_shards_ends_all_with_what_is_safe(tmp_path):
    run = tiny(validate_every=0, save_every=2, shard=True, checkpoints="sharded")
    codes, said = launched(run, tmp_path / "run", FULL)
    assert codes in ([2, 2], [2, 1])  # the second may see first that the first has ended
    assert "step 4 could not be written: process 1: No space left on device. Last good checkpoint: " in said
    assert "step-0000002; " in said and not list((tmp_path / "run").rglob(".*"))
