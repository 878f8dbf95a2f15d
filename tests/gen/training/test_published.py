"""Laws of the recipes with published settings: written, counted and cited as they stand, without their data."""

import json

import pytest

from gen.config.spec import find, names, preset_names
from gen.training.checks import check_sampler
from gen.training.dry_run import Counter
from gen.training.papers.results import RESULTS
from gen.training.run import Run, run_from, run_spec

FOLDER = "training.published"
NAMES = names(FOLDER)
LARGE = ("dmd2_imagenet64", "f_distill_imagenet64")  # U-Nets of many parts, some in three copies


def recipe(name):
    return find(name, FOLDER)()


def test_every_recipe_has_its_result_and_the_other_way_round():
    assert sorted(RESULTS) == NAMES
    assert not any(preset_names(find(name, FOLDER)) for name in NAMES)
    for name, published in RESULTS.items():
        assert bool(published.result) == bool(published.by), name
        doc = find(name, FOLDER).__doc__
        assert published.checked or "Not verified" in doc, f"{name}: its docstring says what could not be verified"
        assert "Sources:" in doc or not published.result, name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run_whose_json_is_it(name):
    run = recipe(name)
    assert isinstance(run, Run)
    assert run_from(json.loads(json.dumps(run_spec(run))), None) == run
    check_sampler(run)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in NAMES])
def test_parameters_are_the_published_ones(name):
    counted = {role: sum(counts) for role, counts in Counter(recipe(name)).parameters().items()}
    assert RESULTS[name].parameters.items() <= counted.items()


@pytest.mark.parametrize("name", [name for name in NAMES if RESULTS[name].gmacs])
def test_operations_are_the_published_ones(name):
    operations, _, _ = Counter(recipe(name)).forward()
    assert operations / 2e9 == pytest.approx(RESULTS[name].gmacs, rel=0.01)
