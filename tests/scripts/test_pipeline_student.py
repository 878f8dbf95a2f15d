"""The script that proves a student inside diffusers' own pipeline, at sizes of no use."""

import json
import sys

import pytest
import torch

from gen.data.captioned_digits import CaptionedDigits
from scripts import captions, pipeline_student


def test_its_autoencoder_changes_nothing():
    vae, data = pipeline_student._autoencoder(), CaptionedDigits().open("test")
    x = data[torch.arange(8)]["x"].expand(-1, 3, -1, -1)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(z, x[:, :1], atol=1e-3, rtol=0)
        torch.testing.assert_close(vae.decode(z).sample, x, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_from_captions_to_steps_of_the_pipeline_with_adapters(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captions, "JUDGE_STEPS", 2)
    small = ["--teacher-steps", "2", "--pairs", "8", "--steps", "2", "--each", "2"]
    monkeypatch.setattr(sys, "argv", ["pipeline_student", "--out", str(tmp_path), *small])
    pipeline_student.main()
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row[:2] for row in rows] == [
        ["teacher", 20],
        ["teacher", 2],
        ["teacher", 1],
        ["student", 2],
        ["student", 1],
    ]
    assert capsys.readouterr().out.count("\n| student") == 2
