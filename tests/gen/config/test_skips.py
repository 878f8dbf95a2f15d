"""Where CI runs, a skipped test is a failed one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NO_TORCH = """
from types import SimpleNamespace
cuda = SimpleNamespace(is_available=lambda: False)
set_num_threads = manual_seed = lambda number: None
default_generator = SimpleNamespace(manual_seed=manual_seed)
"""


def test_a_skip_is_a_failure_where_ci_runs(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "torch.py").write_text(NO_TORCH)  # which takes seconds to import
    (tmp_path / "test_one.py").write_text(
        "import pytest\n\ndef test_that_is_skipped():\n    pytest.importorskip('a_package_that_is_not_there')\n\n"
        "@pytest.mark.gpu\ndef test_of_a_gpu(): ...\n\ndef test_that_runs(): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    strict = subprocess.run([*command, "--no-skips"], capture_output=True, text=True, cwd=tmp_path)
    assert "1 failed, 1 passed, 1 skipped" in strict.stdout, strict.stdout
    assert "skipped, and so tests nothing" in strict.stdout, strict.stdout
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
