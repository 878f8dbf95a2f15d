"""Pictures, an autoencoder of them, latents, a model of those, samples, pictures again, FID: by command lines."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gen
from gen.cli import main
from gen.config.spec import build
from gen.data.latents import Latents
from gen.data.lib.latent_store import read_manifest
from tests.gen.data.test_encode import files
from tests.ranks import spread

TINY = "--model.width 8 --model.groups 4 --model.attention false --steps 6 --batch_size 8 --quiet --validate_every 3"
UNET = "--model.width 8 --model.groups 4 --model.blocks 1 --model.attention [] --steps 4 --batch_size 8 --quiet"


def draw_pictures(folder):
    """Write 24 pictures of two classes, of several sizes."""
    g = np.random.default_rng(0)
    for label in ("bars", "dots"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            side = 20 + 2 * i
            rows = g.integers(0, 255, (side, 1 if label == "bars" else side, 3), dtype=np.uint8)
            Image.fromarray(np.broadcast_to(rows, (side, side, 3)).copy()).save(folder / label / f"{i}.png")


def encode_together():
    """One of two processes of a launcher."""
    os.chdir(os.environ["FOLDER"])
    run("encode photos --size 16 --autoencoder runs/vae --out both --flip --shard 8 --batch-size 4 --quiet")
    return {"done": torch.tensor(1)}


def run(line):
    assert main(line.split()) == 0, line


@pytest.mark.slow
def test_the_chain_from_pictures_to_a_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_pictures(Path("photos"))
    run(f"train autoencoder --data photos --size 16 --out runs/vae {TINY}")
    run("encode photos --size 16 --autoencoder runs/vae --out latents --flip --shard 8 --batch-size 4 --quiet")
    spread("tests.scripts.test_latent_chain:encode_together", 2, tmp_path / "ranks", FOLDER=str(tmp_path))
    assert files(Path("latents")) == files(Path("both"))

    data = "--data ./latents --data.standardise channel --data.flip true"
    run(f"train own {data} --out runs/model {UNET} --sample_every 0")
    pipeline = gen.load("runs/model")
    assert pipeline.shape == (4, 4, 4) and pipeline.info["labels"] == ["bars", "dots"]
    latents = pipeline.sample(3, cond=["dots", "bars", "dots"], steps=2)
    coder = build("models.autoencoders", {"name": "trained", "folder": "runs/vae"}).load()
    std = torch.tensor(read_manifest(Path("latents"))["statistics"]["channel"]["var"]).sqrt().reshape(-1, 1, 1)
    mean = torch.tensor(read_manifest(Path("latents"))["statistics"]["channel"]["mean"]).reshape(-1, 1, 1)
    theirs = coder.decode(latents.x * std + mean)
    torch.testing.assert_close(pipeline.decoded(latents, "runs/vae").x, theirs, rtol=1e-4, atol=1e-4)

    run("sample runs/model -n 4 --steps 2 --autoencoder runs/vae --out samples.png")
    against = json.dumps({"name": "folder", "path": "photos", "size": 16})
    line = "evaluate runs/model -n 12 --steps 2 --autoencoder runs/vae --extractor pixels --metrics fid --split all"
    capsys.readouterr()
    assert main([*line.split(), "--against", against]) == 0
    assert "FID" in capsys.readouterr().out

    run("export runs/vae --to diffusers --out vae")
    owner = importlib.import_module("diffusers").AutoencoderKL
    net = owner.from_pretrained("vae").eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(net.encode(x).latent_dist.mean, coder.encode(x).mean, rtol=1e-5, atol=1e-5)
    one = Latents("latents", posterior="mean").open("train")
    pictures = build("data", json.loads(against)).open("train")
    with torch.no_grad():
        x = torch.stack([pictures[i]["x"] for i in range(4)])
        torch.testing.assert_close(one[0]["x"], coder.encode(x).mean[0], rtol=2e-3, atol=2e-3)
