"""Of several processes one is killed: the others end, in one line that says how to go on."""

import os
import socket
import subprocess
import sys

import pytest

from gen.config.checkpoints import write_json
from gen.training.run import run_spec
from tests.gen.tiny import tiny

CODE = """
import os, signal, sys
from gen.cli import main
from gen.training.trainer import Trainer
after_step = Trainer._after_step
def killed(self, logs):
    if os.environ["RANK"] == "1" and self.steps_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    after_step(self, logs)
Trainer._after_step = killed
raise SystemExit(main(["train", sys.argv[1], "--out", sys.argv[2], "--quiet"]))
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_one_line(tmp_path):
    write_json(tmp_path / "run.json", {"run": run_spec(tiny(steps=1000, validate_every=0))})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", CODE, str(tmp_path / "run.json"), str(tmp_path / "run")]
    both = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    (_, said), _ = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == [1, -9]
    assert [line for line in said.splitlines() if line.startswith("gen: ")] == [
        "gen: another process of this run has ended, whose own message says why; run this again to go on"
    ]
    assert "Traceback" not in said
