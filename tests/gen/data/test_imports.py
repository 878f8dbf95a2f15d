"""Modules that a command imports first: a circle of imports shows only where it is entered."""

import subprocess
import sys

import pytest

FIRST = ("gen.data.lib.shards", "gen.data.lib.encoding", "gen.pipeline")
CHILDREN = """
import os, torch
for name in {names}:
    if (child := os.fork()) == 0:
        __import__(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.slow
def test_each_can_be_imported_first():
    """In a process of its own, forked from one that has imported torch alone."""
    code = CHILDREN.format(names=FIRST)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
