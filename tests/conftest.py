"""One thread and fixed seeds for every test; `slow` tests only with --run-slow, `gpu` tests only where a GPU is, and
`browser` tests only with --run-browser.

With --no-skips, as `make test` has it, any other skip is a failure: a test that is skipped where CI runs tests nothing.

Left out, but for processes that tests start, is what changes nothing that they say: to write through to the disk,
which is for loss of power, to validate on more than 20 items, and to time more than the five blocks that a speed needs.
"""

import functools
import gc
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads slow small nets several times

import pytest
import torch

torch.set_num_threads(1)
os.fsync = lambda file: None  # 8 ms each, thousands of times
if not torch.cuda.is_available():
    torch.manual_seed = torch.default_generator.manual_seed  # else the stack is written for each device it lacks


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--run-browser", action="store_true", help="also run the tests that drive Chromium")
    parser.addoption("--no-skips", action="store_true", help="fail what is skipped but for want of a GPU")


def _fail_if_skipped(config, report):
    if report.skipped and config.getoption("--no-skips") and "needs a CUDA device" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"skipped, and so tests nothing: {report.longrepr[-1]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    _fail_if_skipped(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _fail_if_skipped(collector.config, report)
    return report


def pytest_collection_finish():
    """What was collected stays: to look through it again and again for what is garbage took a twentieth of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    for mark in ("slow", "browser"):
        if not config.getoption(f"--run-{mark}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing is written to, or read from, the user's cache; the processes of one pytest share theirs."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "cache"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_are_timed(monkeypatch):
    if measuring := sys.modules.get("gen.eval.measuring"):
        for name, few in {"Throughput": {"blocks": 5, "warmup": 2}, "InterleavedTiming": {"rounds": 6}}.items():
            owner = getattr(measuring, name)
            begin = functools.partialmethod(owner.__init__, **few)
            monkeypatch.setattr(measuring, name, type(name, (owner,), {"__init__": begin}))


@pytest.fixture(autouse=True)
def _few_are_validated(monkeypatch):
    if "gen.training.trainer" in sys.modules:
        monkeypatch.setattr("gen.training.trainer.VALIDATION_SAMPLES", 20)
