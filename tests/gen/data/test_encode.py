"""Pictures to latents: the same files whoever writes them, in however many parts, after whatever kills."""

import importlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gen.cli import main
from gen.config.errors import UserError
from gen.data.latents import Latents
from gen.data.lib.encoding import Encoding, encode
from gen.data.lib.latent_statistics import LatentSums
from gen.data.lib.latent_store import read_manifest
from gen.data.lib.shards import ShardPlan
from gen.data.npz import Npz
from gen.diffusion.alignment import Features
from gen.diffusion.autoencoder import Posterior
from gen.training.signals import Interrupted
from tests.ranks import spread

N = 22


@dataclass(frozen=True)
class Halves:
    """An autoencoder of means x / 2 and variances that a picture decides; `seconds` for each batch."""

    seconds: float = 0.0
    noisy: bool = True
    low: float = -1.0

    def load(self, device="cpu"):
        return Halver(self)


class Halver(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec, self.weight = spec, nn.Parameter(torch.tensor(0.5))
        self.image_range = (spec.low, 1.0)

    def encode(self, x):
        time.sleep(self.spec.seconds)
        return Posterior(self.weight * x[:, :, ::2, ::2], -1 - x[:, :, 1::2, ::2] if self.spec.noisy else None)


@dataclass(frozen=True)
class Rows:
    """An encoder whose tokens are four pixels, and whose class token is the picture's mean."""

    dim: int = 3
    grid: int = 2

    def load(self, device="cpu"):
        return RowsNet()


class RowsNet(nn.Module):
    def forward(self, images):
        tokens = images[:, :, :2, :2].flatten(2).mT
        return Features(tokens, images.mean((2, 3)))


def pictures(path, n=N):
    g = np.random.default_rng(0)
    np.savez(path, arr_0=g.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), arr_1=np.arange(n) % 2)
    return Npz(str(path), holdout=0.25)


def how(**changes):
    return Encoding(**{"autoencoder": Halves(), "batch_size": 4, "flip": True, "dtype": "float32", **changes})


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    net = importlib.import_module("diffusers").AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16,
    )  # fmt: skip
    net.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_latents_are_those_of_the_autoencoder_in_the_order_of_the_data(vae, tmp_path, capsys):
    pictures(tmp_path / "a.npz")
    data = json.dumps({"name": "npz", "path": str(tmp_path / "a.npz"), "holdout": 0.25})
    words = ["--autoencoder", str(vae), "--flip", "--dtype", "float32", "--shard", "8", "--batch-size", "4", "--quiet"]
    assert main(["encode", data, "--out", str(tmp_path / "out"), *words]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: done\n"
    source = pictures(tmp_path / "a.npz")
    net = importlib.import_module("diffusers").AutoencoderKL.from_pretrained(vae).eval()
    items = [item for split in ("train", "test") for item in source.open(split)]
    x = torch.stack([item["x"] for item in items])
    shards = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [len(shard["labels"]) for shard in shards] == [8, 8, 6]
    whole = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    for suffix, images in (("", x), ("_flip", x.flip(3))):
        theirs = net.encode(images).latent_dist
        torch.testing.assert_close(whole["mean" + suffix], theirs.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole["logvar" + suffix], theirs.logvar, rtol=1e-5, atol=1e-5)
    assert whole["labels"].tolist() == [int(item["y"]) for item in items]
    about = read_manifest(tmp_path / "out")
    assert about["autoencoder"]["class"] == "AutoencoderKL" and about["autoencoder"]["image_range"] == [-1.0, 1.0]
    assert about["splits"] == {"train": len(source.open("train")), "test": len(source.open("test"))}


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
def test_statistics_are_those_of_all_draws_of_the_rows_to_train_on(tmp_path, threads):
    source = pictures(tmp_path / "a.npz")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encode(source, tmp_path / "out", how(dtype="float16"), ShardPlan(4, quiet=True))
    finally:
        torch.set_num_threads(before)
    shards = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    n = len(source.open("train"))
    mean, logvar = (
        torch.cat([torch.cat([shard[key + end] for shard in shards])[:n] for end in ("", "_flip")]).double()
        for key in ("mean", "logvar")
    )
    var = mean.var(0, correction=0) + logvar.exp().mean(0)
    about = read_manifest(tmp_path / "out")["statistics"]
    position = load_file(tmp_path / "out" / about["position"]["file"])
    assert about["count"] == 2 * n
    torch.testing.assert_close(position["mean"], mean.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(position["var"], var, rtol=1e-13, atol=1e-13)
    channel = mean.var((0, 2, 3), correction=0) + logvar.exp().mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(about["channel"]["var"]).double(), channel, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(about["channel"]["mean"]).double(), mean.mean((0, 2, 3)), rtol=1e-6, atol=0)


def test_sums_lose_no_digits_far_from_zero():
    x = torch.randn(100, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e8
    parts = LatentSums.total(LatentSums.of(x[i : i + 7]) for i in range(0, 100, 7))
    assert parts.count == 100
    torch.testing.assert_close(parts.position_var, x.var(0, correction=0), rtol=1e-7, atol=0)
    torch.testing.assert_close(parts.channel_var, x.transpose(0, 1).flatten(1).var(1, correction=0), rtol=1e-7, atol=0)


def test_parts_and_workers_write_the_files_of_one(tmp_path):
    source, plan = pictures(tmp_path / "a.npz"), ShardPlan(4, quiet=True)
    encode(source, tmp_path / "one", how(encoder=Rows()), plan)
    for k in (2, 3, 1):
        missing = encode(source, tmp_path / "parts", how(encoder=Rows()), ShardPlan(4, (k, 3), quiet=True))
        assert (missing == 0) == (k == 1)
        if missing:
            with pytest.raises(UserError, match="is not finished: run its gen encode again"):
                Latents(str(tmp_path / "parts")).open("train")
    encode(source, tmp_path / "workers", how(encoder=Rows(), workers=2), plan)
    one = files(tmp_path / "one")
    assert "manifest.json" in one
    assert one == files(tmp_path / "parts") == files(tmp_path / "workers")
    assert one == (encode(source, tmp_path / "one", how(encoder=Rows()), plan), files(tmp_path / "one"))[1]


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path):
    encode(pictures(tmp_path / "a.npz"), tmp_path / "one", how(encoder=Rows()), ShardPlan(4, quiet=True))
    spread("tests.gen.data.test_encode:encode_together", 2, tmp_path / "ranks", FOLDER=str(tmp_path))
    assert files(tmp_path / "one") == files(tmp_path / "together")


def encode_together():
    folder = Path(os.environ["FOLDER"])
    source = Npz(str(folder / "a.npz"), holdout=0.25)
    encode(source, folder / "together", how(encoder=Rows()), ShardPlan(4, quiet=True))
    return {"done": torch.tensor(1)}


def test_a_row_has_the_same_bits_in_any_shards(vae, tmp_path):
    source = pictures(tmp_path / "a.npz")
    spec = {"name": "diffusers", "folder": str(vae)}
    for size in (4, 12):
        encode(source, tmp_path / str(size), how(autoencoder=spec), ShardPlan(size, quiet=True))
    rows = [
        torch.cat([load_file(f)["mean_flip"] for f in sorted((tmp_path / size).glob("*.safetensors"))])
        for size in ("4", "12")
    ]
    assert torch.equal(*rows)


def test_killed_at_any_instant_it_ends_in_the_same_files(tmp_path):
    source, plan = pictures(tmp_path / "a.npz"), ShardPlan(4, quiet=True)
    encode(source, tmp_path / "whole", how(), plan)
    generator = np.random.default_rng(0)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                encode(source, tmp_path / "killed", how(autoencoder=Halves(0.002)), plan)
            finally:
                os._exit(0)
        time.sleep(float(generator.uniform(0.0, 0.06)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # what it takes does not decide the bits, but is among the autoencoder's settings
    encode(source, tmp_path / "killed", how(autoencoder=Halves(0.002)), plan)
    ours, theirs = (
        {name: data for name, data in files(tmp_path / run).items() if name.startswith(("latents-", "statistics/"))}
        for run in ("killed", "whole")
    )
    assert ours == theirs and not list((tmp_path / "killed").rglob(".partial*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in an object's end
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_it_in_one_line_and_it_goes_on(tmp_path, number, workers):
    source, plan, before = pictures(tmp_path / "a.npz"), ShardPlan(4, quiet=True), signal.getsignal(signal.SIGTERM)
    slow, folder = how(autoencoder=Halves(0.02), workers=workers), tmp_path / "out"

    def kill():
        while not (folder / "latents-00001.safetensors").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(Interrupted, match=r"stopped; the shards that are whole stay in .*out, run this again") as error:
        encode(source, folder, slow, plan)
    thread.join()
    assert error.value.number == number and signal.getsignal(signal.SIGTERM) is before
    assert not (folder / "manifest.json").exists() and not list(folder.rglob(".*"))
    assert encode(source, folder, slow, plan) == 0 and read_manifest(folder)["rows"] == N


@pytest.mark.parametrize("damage", ["bytes", "removed", "record"])
def test_a_damaged_shard_is_written_again(tmp_path, damage):
    source, plan = pictures(tmp_path / "a.npz"), ShardPlan(4, quiet=True)
    encode(source, tmp_path / "out", how(), plan)
    before, file = files(tmp_path / "out"), tmp_path / "out" / "latents-00002.safetensors"
    if damage == "bytes":
        file.write_bytes(file.read_bytes()[:-4] + b"1234")
        with pytest.raises(UserError, match=r"latents-00002\.safetensors is damaged or was changed"):
            Latents(str(tmp_path / "out")).open("train")
    elif damage == "removed":
        file.unlink()
        with pytest.raises(UserError, match=r"latents-00002\.safetensors is not there"):
            Latents(str(tmp_path / "out")).open("train")
    else:
        (tmp_path / "out" / "records" / "00002" / "manifest.json").unlink()
    encode(source, tmp_path / "out", how(), plan)
    assert files(tmp_path / "out") == before


def test_latents_without_a_distribution_and_features_of_an_encoder(tmp_path):
    source = pictures(tmp_path / "a.npz")
    encode(source, tmp_path / "out", how(autoencoder=Halves(noisy=False), encoder=Rows()), ShardPlan(8, quiet=True))
    data = Latents(str(tmp_path / "out"), features=True, flip=True).open("train")
    items = source.open("train")
    for i, mirrored in ((3, False), (3 + len(items), True)):
        x = items[3]["x"].flip(2) if mirrored else items[3]["x"]
        assert torch.equal(data[i]["x"], 0.5 * x[:, ::2, ::2])
        tokens = torch.cat([x.mean((1, 2))[None], x[:, :2, :2].flatten(1).T])
        torch.testing.assert_close(data[i]["features"], tokens)


def wrong():
    return {
        "other data": ({}, {"source": 23}, "holds other latents (data "),
        "other dtype": ({"dtype": "float16"}, {}, "dtype float32 there, float16 here"),
        "other batches": ({"batch_size": 2}, {}, "batch_size 4 there, 2 here"),
        "other autoencoder": ({"autoencoder": Halves(noisy=False)}, {}, "holds other latents (autoencoder "),
        "other shards": ({}, {"size": 8}, "shard 4 there, 8 here"),
        "no batches": ({}, {"size": 6}, "shard = 6 is no multiple of batch_size = 4"),
    }


@pytest.mark.parametrize("case", wrong())
def test_a_folder_of_something_else_is_refused(case, tmp_path):
    changes, other, words = wrong()[case]
    encode(pictures(tmp_path / "a.npz"), tmp_path / "out", how(), ShardPlan(4, quiet=True))
    before = files(tmp_path / "out")
    source = pictures(tmp_path / "b.npz", other.get("source", N))
    with pytest.raises(UserError) as error:
        encode(source, tmp_path / "out", how(**changes), ShardPlan(other.get("size", 4), quiet=True))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path / "out") == before


def test_a_folder_of_other_files_and_data_that_are_none(tmp_path):
    source = pictures(tmp_path / "a.npz")
    with pytest.raises(UserError, match="holds files that gen encode did not write"):
        encode(source, tmp_path, how(), ShardPlan(4, quiet=True))
    encode(source, tmp_path / "out", how(), ShardPlan(4, quiet=True))
    with pytest.raises(UserError, match=r"latents: items are \[3, 8, 8\], no pictures to encode"):
        encode(Latents(str(tmp_path / "out")), tmp_path / "again", how(), ShardPlan(4, quiet=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--size", "8"], "unknown name 'nowhere'"),
        (["{root}", "--size", "8"], "holds no pictures"),
        (["digits", "--autoencoder", "nowhere"], "the autoencoder 'nowhere' is no folder"),
        (["digits", "--part", "0/2"], "--part '0/2': expected k/n"),
        (["digits"], "this autoencoder takes pictures of 3 channels, these are [4, 1, 8, 8]"),
    ],
)
def test_wrong_lines_are_refused_in_one_line(words, message, vae, tmp_path, capsys):
    line = [word.format(root=tmp_path) for word in words]
    line += [] if "--autoencoder" in line else ["--autoencoder", str(vae)]
    assert main(["encode", *line, "--batch-size", "4", "--quiet", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
