"""Every test compiles for itself: all operations share one call, of which only so many compiled forms are kept."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _compiled_anew():
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
