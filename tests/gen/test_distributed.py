"""Two processes compute what one does: the global batch, its noise and its order are shared out, not multiplied."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gen import manifest
from gen.train import train
from tests.gen.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
import torch
torch.set_num_threads(1)
from gen.train import train
from tests.gen.tiny import tiny
train(tiny(micro_batch_size=2), sys.argv[1], quiet=True)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    train(tiny(), tmp_path / "one", quiet=True)
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29512"]
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = tmp_path / "one/final", tmp_path / "two/final"
    a, b = manifest.read(one), manifest.read(two)
    assert b["step"] == 6
    for name in a["files"]:
        ours, theirs = manifest.read_tensors(one, name, a), manifest.read_tensors(two, name, b)
        for key in ours:
            assert torch.allclose(ours[key], theirs[key], atol=2e-5), f"{name} {key}"
