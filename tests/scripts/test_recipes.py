"""benchmarks/results/recipes.json has every recipe with published settings, as its dry run counts it."""

import importlib.util
import json
from pathlib import Path

import pytest

from gen.config.spec import names

ROOT = Path(__file__).parents[2]
NAMES = names("training.published")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "scripts/recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script):
    return json.loads(script.OUT.read_text("utf-8"))["rows"]


def test_every_recipe_has_its_row(script, rows):
    assert list(rows) == NAMES
    for name, row in rows.items():
        assert script.known(name).items() <= row.items(), f"python scripts/recipes.py {name} makes the row anew"


@pytest.mark.parametrize("name", ["cifar10_dit", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)])
def test_a_row_is_what_its_dry_run_counts(script, rows, name):
    assert script.row(name) == rows[name]
