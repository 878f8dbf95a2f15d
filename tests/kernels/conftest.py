"""Every test compiles for itself: all operations share one call, of which only so many compiled forms are kept.

On a GPU most time is spent compiling, and dtypes and sizes are compiled alike: without --run-slow only bfloat16, heads
of 64 and 72 and one case of FlexAttention are run there.
"""

import sys
from pathlib import Path

import pytest
import torch

TELLING = {"dtype": (torch.bfloat16,), "dim": (64, 72), "backend": ("sdpa", "triton", "xformers")}
ALSO = {"backend": "flex", "dim": 64, "dtype": torch.bfloat16}


def is_telling(params):
    """Whether a test on a GPU is run without --run-slow, by its parameters."""
    return params == ALSO or all(params.get(name, known[0]) in known for name, known in TELLING.items())


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items):
    for item in items:
        here = Path(__file__).parent in item.path.parents and item.get_closest_marker("gpu")
        if here and hasattr(item, "callspec") and not is_telling(item.callspec.params):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _compiled_anew():
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
