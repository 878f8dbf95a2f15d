"""The distribution that pip installs: its name, version and extras, as code and pages name them."""

import re
import tomllib
from pathlib import Path

import pytest

import gen
from tests.test_layout import ROOT, tracked_text

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
RECORDED = "benchmarks/results/"  # messages of the days on which they were recorded


def test_the_version_stands_in_one_file():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "gen.__version__"}}
    assert re.fullmatch(r"\d+\.\d+\.\d+", gen.__version__)


def test_installed_names_are_the_distribution_and_its_extras():
    name, wrong = PROJECT["project"]["name"], []
    for path, text in tracked_text():
        if path.startswith(RECORDED):
            continue
        for found in re.finditer(r"\b(gen(?:-[\w-]+)?)\\?\[(\w+)\\?\](?=['\"` ,.)])", text):
            if (found[1], found[2]) not in {(name, extra) for extra in EXTRAS}:
                wrong.append(f"{path}: {found[0]}")
        wrong += [f"{path}: {found[0]}" for found in re.finditer(r"pip install (?:--?[\w-]+ )*['\"]?gen(?!-)\b", text)]
    assert not wrong


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "dev"])
def test_what_tests_need_of_an_extra_is_as_new_as_the_extra_asks(extra):
    """dev may leave an extra out, but asks for the same version where it has it."""
    dev = {re.match(r"[\w-]+", line)[0]: line.partition(";")[0] for line in EXTRAS["dev"]}
    for line in EXTRAS[extra]:
        package = re.match(r"[\w-]+", line)[0]
        assert package not in dev or dev[package] == line or "==" in dev[package]


def test_types_are_declared():
    assert (Path(gen.__file__).parent / "py.typed").exists()
