"""The short version of scripts/kill_test.py: one kill of each writer, all survived, the right bits at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "kill_test.py"


@pytest.mark.slow
def test_seven_kills_are_survived():
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "7"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["resumable"] == 7 and result["same_bits"] and not result["left"]
