"""Of several processes one is killed: the others end, in one line that says how to go on, and the run does."""

import os
import socket
import subprocess
import sys

import pytest

from gen.config import checkpoints
from gen.config.checkpoints import write_json
from gen.training.run import run_spec
from tests.gen.tiny import tiny

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
CODE = """
import os, signal, sys
from gen.cli import main
{}
raise SystemExit(main(["train", sys.argv[1], "--out", sys.argv[2], "--quiet"]))
"""


def two(run, folder, kill=""):
    """Two processes of `gen train`: their exit codes, and what the first one says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    write_json(folder.with_suffix(".json"), {"run": run_spec(run)})
    command = [sys.executable, "-c", CODE.format(kill), str(folder.with_suffix(".json")), str(folder)]
    both = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    (_, said), _ = (process.communicate(timeout=120) for process in both)
    return [process.returncode for process in both], said


def check_said(said):
    assert [line for line in said.splitlines() if line.startswith("gen: ")] == [
        "gen: another process of this run has ended, whose own message says why; run this again to go on"
    ]
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_one_line(tmp_path):
    codes, said = two(tiny(steps=1000, validate_every=0), tmp_path / "run", STEP)
    assert codes == [1, -9]
    check_said(said)


@pytest.mark.slow
def test_one_that_is_killed_while_it_writes_its_shards_leaves_the_checkpoint_before(tmp_path):
    run = tiny(validate_every=0, save_every=2, shard=True, checkpoints="sharded")
    codes, said = two(run, tmp_path / "run", SHARDS)
    assert codes == [1, -9]
    check_said(said)
    assert checkpoints.newest(tmp_path / "run/checkpoints").name == "step-0000002"
    for folder in ("run", "whole"):
        codes, said = two(run, tmp_path / folder)
        assert codes == [0, 0], said
    ours, theirs = (checkpoints.read(tmp_path / folder / "checkpoints/step-0000006") for folder in ("run", "whole"))
    assert ours["files"] == theirs["files"] and "net-00002-of-00002.safetensors" in ours["files"]
    assert not list((tmp_path / "run").rglob(".*"))
