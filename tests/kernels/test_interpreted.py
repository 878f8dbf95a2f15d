"""Triton's kernels without a GPU: the files of interpreted/, in a process where Triton interprets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.slow
def test_all_kernels_interpreted():
    """One process for all of them: starting it is half of the time."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:xdist",
        "-o",
        "python_files=check_*.py",
        str(FOLDER),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
