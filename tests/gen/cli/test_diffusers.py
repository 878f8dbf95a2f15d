"""Verbs on a folder of diffusers' pipeline: prompts in, pictures, records and grids out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import gen
from gen.cli import main
from tests.pipelines.tiny import tiny, with_text_encoder


@pytest.fixture(scope="module")
def fox(tmp_path_factory):
    where = tmp_path_factory.mktemp("verbs") / "fox"
    with_text_encoder("sd15").save_pretrained(where)
    (where.parent / "prompts.txt").write_text("a red fox\na blue bird\nthe dog at night\n")
    (where.parent / "wan").mkdir()
    with_text_encoder("wan").save_pretrained(where.parent / "wan")
    return where


@pytest.fixture
def quick(monkeypatch):
    """Speed is timed in no time."""
    monkeypatch.setattr("gen.eval.evaluate.timing", lambda *given: {})


def run(*words):
    return main([str(word) for word in words])


def test_prompts_are_sampled_and_written(fox, tmp_path, capsys):
    out = tmp_path / "fox.png"
    how = ["--solver", "dpmpp", "--steps", 3, "--seed", 1, "--size", "16x24", "--negative", "a dog", "--quiet"]
    assert run("sample", fox, "--prompt", "a red fox", "--images-per-label", 2, *how, "--out", out) == 0
    assert "2 samples, 6 evaluations each" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert json.loads(sheet.text["prompts"]) == ["a red fox"] * 2
    (tmp_path / "words.txt").write_text("a red fox\na bird\n")
    words = ["--prompts", tmp_path / "words.txt", *how, "--batch-size", 1]
    assert run("sample", fox, *words, "--out", tmp_path / "two.npz") == 0
    with np.load(tmp_path / "two.npz") as file:
        assert file["arr_0"].shape == (2, 16, 24, 3)
    how = ["--call.guidance_scale", 1, "--steps", 2, "--engine", "packed", "--dtype", "float32"]
    assert run("sample", fox, "--prompt", "a fox", *how, "--out", out) == 0
    said = capsys.readouterr().out
    assert "1 samples, 2 evaluations each" in said and "(packed: " in said


def test_adapters_are_added_by_factors(fox, tmp_path, capsys):
    unet, tensors = with_text_encoder("sd15").unet, {}
    for name, layer in unet.named_modules():
        if name.endswith("to_q"):
            out, inner = layer.weight.shape
            tensors |= {
                f"unet.{name}.lora_A.weight": torch.ones(1, inner),
                f"unet.{name}.lora_B.weight": torch.ones(out, 1),
            }
    (tmp_path / "style").mkdir()
    save_file(tensors, tmp_path / "style" / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    words, made = ["sample", fox, "--prompt", "a red fox", "--steps", 2, "--size", 16, "--quiet"], []
    for i, given in enumerate(([], ["--adapters", f"{tmp_path / 'style'}=0"], ["--adapters", tmp_path / "style"])):
        assert run(*words, *given, "--out", tmp_path / f"{i}.npz") == 0
        made.append(np.load(tmp_path / f"{i}.npz")["arr_0"])
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
    capsys.readouterr()
    for given, said in (
        (["--adapters", fox], "allowed for a pipeline: folders as save_adapters writes"),
        (["--adapters", tmp_path / "style", "--ties", 0.5], "adds adapters up: leave out --ties"),
    ):
        assert run(*words, *given, "--out", tmp_path / "x.npz") == 2
        assert said in capsys.readouterr().err


def test_a_picture_is_edited(fox, tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    words = ["sample", fox, "--prompt", "a red fox", "--image", tmp_path / "red.png", "--strength", 0.5, "--steps", 4]
    Image.new("L", (20, 20), "white").save(tmp_path / "mask.png")
    how = ["--size", 16, "--quiet", "--mask", tmp_path / "mask.png"]
    assert run(*words, *how, "--out", tmp_path / "edited.png") == 0
    assert "1 samples, 4 evaluations each" in capsys.readouterr().out


def test_what_pipelines_are_not_for_says_what_is(fox, tmp_path, capsys):
    assert run("import", fox, "--out", tmp_path / "run") == 2
    assert "is a pipeline, which verbs take as it is, such as gen sample" in capsys.readouterr().err
    with_text_encoder("flux").save_pretrained(fox.parent / "flux")
    flux = ["sample", fox.parent / "flux", "--prompt", "a fox", "--size", 16, "--steps", 2, "--out", tmp_path / "f.png"]
    capsys.readouterr()
    assert run(*flux, "--guidance-scale", 3.5) == 2
    assert "--call.guidance_scale 3.5" in capsys.readouterr().err
    assert run(*flux, "--guidance-scale", 3.5, "--negative", "a dog") == 0
    assert run(*flux, "--call.guidance_scale", 3.5) == 0


def test_a_pipeline_of_labels_is_sampled_and_evaluated_by_labels(fox, tmp_path, capsys, quick):
    dit, out = fox.parent / "dit", tmp_path / "dit.npz"
    tiny("dit").save_pretrained(dit)
    how = ["--steps", 2, "--batch-size", 4]
    assert run("sample", dit, "--labels", "7,400", *how, "--seed", 3, "--quiet", "--out", out) == 0
    assert "2 samples, 4 evaluations each" in capsys.readouterr().out
    ours = gen.load_diffusers(dit).sample(labels=[7, 400], steps=2, seed=3)
    with np.load(out) as file:
        assert file["arr_1"].tolist() == [7, 400] and np.array_equal(file["arr_0"], ours.uint8().movedim(1, -1))
    assert run("sample", dit, "--labels", "7", "--negative", "400", *how, "--out", tmp_path / "dit.png") == 0
    real = tmp_path / "real.npz"
    np.savez(real, arr_0=np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8))
    words = ["evaluate", dit, "-n", 6, "--against", real, "--out", tmp_path / "eval", *how]
    assert run(*words, "--metrics", "fid", "--extractor", "pixels", "--features", tmp_path / "features") == 0
    (record,) = (tmp_path / "eval").glob("*.json")
    assert "balanced, i mod 1000" in record.read_text()
    capsys.readouterr()
    for options, message in (
        (["--prompt", "a fox"], "takes labels: leave out --prompt"),
        (["--labels", "1000"], "allowed: 64 of 0 .. 999"),
    ):
        assert run("sample", dit, *options, "--out", tmp_path / "no.png") == 2
        assert message in capsys.readouterr().err


def test_films_are_rows_of_a_sheet_and_files_of_frames(fox, tmp_path):
    words = ["sample", fox.parent / "wan", "--prompt", "a fox", "--size", 16, "--call.num_frames", 3, "--steps", 2]
    assert run(*words, "--quiet", "--out", tmp_path / "film.png") == 0
    with Image.open(tmp_path / "film.png") as sheet:
        assert sheet.width > 2 * sheet.height
    assert run(*words, "--quiet", "--out", tmp_path / "films") == 0
    assert Image.open(io.BytesIO((tmp_path / "films/000000.png").read_bytes())).n_frames == 3


def test_a_pipeline_is_evaluated_by_prompts_and_its_grid_is_searched(fox, tmp_path, capsys, quick):
    small = ["--size", 16, "--steps", 2, "--features", tmp_path / "features"]
    real = tmp_path / "real.npz"
    np.savez(real, arr_0=np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8))
    prompts = ["--prompts", fox.parent / "prompts.txt"]
    words = ["evaluate", fox, *prompts, "-n", 6, "--against", real, "--out", tmp_path / "eval", *small]
    assert run(*words, "--metrics", "fid", "--extractor", "pixels") == 0
    (record,) = (tmp_path / "eval").glob("*.json")
    content = json.loads(record.read_text())
    assert "--call" in content["command"] and content["sampler"]["grid"]["name"] == "own_grid"
    assert content["captions"]["n"] == 3 and content["sampler"]["steps"] == 2
    out = tmp_path / "grid.json"
    judged = ["--fitness", "fid", "--data", real, "--extractor", "pixels", "--quiet"]
    assert run("search", fox, *prompts, *small[:4], *judged, "-n", 3, "--budget", 4, "--pool", 4, "--out", out) == 0
    assert json.loads(out.read_text())["steps"] == 2
    assert run("evaluate", fox, "--against", real, *small) == 2
    assert "give --prompts FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a fox", "--size", "17"], "17"),
        (["--prompt", "a fox", "--weights", "ema"], "leave out --weights"),
        (["--prompt", "a fox", "--call.num_frame", "3"], "no argument 'num_frame'"),
        (["-n", "2"], "give --prompt TEXT"),
        (["--prompt", "a fox", "--prompts", "words.txt"], "--prompt and --prompts are given; give one"),
        (["--prompt", "a fox", "--cache", "fora", "--cache", "fbcache"], "--cache is given twice"),
        (["--prompt", "a fox", "--trajectory", "steps"], "leave out --trajectory"),
        (["--labels", "1"], "takes prompts: leave out --labels"),
        (["--prompt", "a fox", "--cache", "custom", "--cache.sites", '["nowhere"]'], "nowhere"),
    ],
)
def test_wrong_options_are_said_in_one_line(fox, tmp_path, capsys, words, message):
    assert run("sample", fox, *words, "--out", tmp_path / "no.png") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
