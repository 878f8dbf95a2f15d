"""The comparison of methods of restoration: which there are, a row, and its table."""

import json

import pytest
import torch

from gen.config.spec import build, names
from gen.data.digits import Digits
from gen.diffusion.path import Flow, Prediction
from gen.operators.inpaint import Known
from gen.pipeline import Pipeline
from scripts import _table_parts, tables
from scripts.compare_restoration import METHODS, OPERATORS, compare


class Grey:
    """A model by which all digits are grey."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return Prediction(torch.zeros_like(x), x / float(t))

    def null(self, cond):
        return {}


def test_every_method_of_pictures_and_every_operator_is_there():
    assert {method["name"] for method in METHODS} == set(names("samplers.restore")) - {"volume", "red_psm"}
    assert all(build("samplers.restore", method) for method in METHODS)
    shapes = {name: build("operators", spec).on((1, 8, 8)).measured for name, spec in OPERATORS.items()}
    assert shapes["SR x2"] == (1, 4, 4) and shapes["blur"] == (1, 8, 8) and shapes["CT"][1] == 4
    assert isinstance(build("operators", OPERATORS["inpainting"]).on((1, 8, 8)), Known)


@pytest.mark.slow
def test_a_row_says_how_far_samples_are_from_the_truth():
    data = Digits().open("test")
    truth = torch.stack([data[i]["x"] for i in range(50)])
    model, operator = Pipeline(Grey(), (1, 8, 8)), OPERATORS["inpainting"]
    start = compare(model, truth, None, operator, 0.0)
    found = compare(model, truth, {"name": "ddnm", "steps": 3}, operator, 0.0)
    assert found["nfe"] == 3 and found["residual"] < 1e-6 and found["fid"] > 0
    assert found["psnr"] == pytest.approx(start["psnr"])  # what is missing is grey in A+ y, too
    noisy = compare(model, truth, None, operator, 0.1)
    assert noisy["psnr"] < start["psnr"]


def test_the_table_has_a_part_for_each_noise_and_leaves_gaps(tmp_path, monkeypatch):
    method = {"name": "ddnm", "steps": 3}
    row = {"operator": "blur", "noise": 0.1, "digits": 5, "psnr": 12.345, "fid": 6.0}
    rows = [row | {"method": None}, row | {"method": method, "nfe": 3.0, "seconds": 7.6}]
    rows.append(rows[1] | {"operator": "CT", "noise": 0.0})
    (tmp_path / "restoration.json").write_text(json.dumps({"date": "d", "torch": "t", "cpu": "c", "rows": rows}))
    monkeypatch.setattr(_table_parts, "RESULTS", tmp_path)
    found = list(tables.restoration())
    assert "| A+ y |  |  | 12.35 / 6.0 |  |" in found and "| `ddnm` | 3 | 8 | 12.35 / 6.0 |  |" in found
    assert "| `ddnm` | 3 | 8 |  | 12.35 / 6.0 |" in found and found[-1].startswith("Source: [restoration.json]")
