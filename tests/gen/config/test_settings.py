"""The short version of scripts/settings_test.py: wrong settings through Python, JSON, TOML and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "settings_test.py"


@pytest.mark.slow
def test_wrong_settings_end_in_one_line_and_touch_nothing():
    command = [sys.executable, str(SCRIPT), "--tries", "24", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {"tries": 24, "faults": 0, "list": []}
