"""The comparison of tokenizers compares networks of one size, and averages seeds as it says."""

import pytest

from gen.config.reading import read_json
from gen.config.spec import build
from scripts.compare_tokenizers import ROOT, digit_rows, over_seeds, photograph_rows, trade


@pytest.mark.parametrize("rows", [digit_rows(), photograph_rows(None)])
def test_tokenizers_have_about_as_many_numbers(rows):
    sizes = {
        name: sum(p.numel() for p in build("models.autoencoders", row.model).build().parameters())
        for name, row in rows.items()
    }
    assert max(sizes.values()) < 1.06 * min(sizes.values()), sizes


def test_means_over_seeds():
    values = [{"fid": {"value": value, "se": 0.5}} for value in (1.0, 2.0, 3.0)]
    assert over_seeds(values)["fid"] == {"value": 2.0, "se": pytest.approx(1 / 3**0.5), "seeds": [1.0, 2.0, 3.0]}
    assert over_seeds(values[:1])["fid"]["se"] == 0.5


def test_the_figure_has_every_tau_of_the_table():
    drawing = trade({"digits": read_json(ROOT / "benchmarks" / "results" / "tokenizers_digits.json")})
    assert drawing.count("<polyline") == 3 and "gFID at 0.6 of the steps" in drawing
