"""From pictures to the score of an autoencoder that learned against a discriminator: by command lines."""

import json
import math
from pathlib import Path

import pytest
import torch

from gen.cli import main
from gen.config.spec import build
from gen.data.folder import Folder
from scripts import reconstruct
from tests.scripts.test_latent_chain import draw_pictures

TINY = "--model.width 8 --model.groups 4 --steps 3 --batch_size 4 --quiet --validate_every 0"
GAN = "--objective tokenizer --objective.discriminator.layers 1 --objective.discriminator.width 8"


@pytest.mark.slow
def test_reconstructions_of_a_tokenizer_are_evaluated_beside_the_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_pictures(Path("photos"))
    assert main(f"train autoencoder --data photos --size 16 --out runs/vae {TINY} {GAN}".split()) == 0
    line = "photos --size 16 --autoencoder runs/vae --split train --n 12 --batch-size 5 --out both"
    assert reconstruct.main(line.split()) == 0
    line = "evaluate both/reconstructed --against both/truth --paired both/truth --extractor pixels"
    capsys.readouterr()
    assert main([*line.split(), "--metrics", "fid,psnr,ssim", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    pictures = Folder("photos", size=16).open("train")
    x = torch.stack([pictures[i]["x"] for i in range(12)])
    coder = build("models.autoencoders", {"name": "trained", "folder": "runs/vae"}).load()
    levels = [((v.clamp(-1, 1) + 1) * 127.5).round() for v in (x, coder.decode(coder.encode(x).mean))]
    squares = (levels[0] - levels[1]).square().flatten(1).mean(1)
    expected = sum(10 * math.log10(255**2 / float(square)) for square in squares) / 12
    assert f"{expected:.2f}"[:-1] in json.dumps(found), found
    assert reconstruct.main(["photos", "--autoencoder", "nowhere", "--out", "no"]) == 1
    assert "nowhere" in capsys.readouterr().err
