"""Latents as data: draws from their posterior, splits, statistics, and the files of other repositories."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import gen
from gen.config.errors import UserError
from gen.config.spec import build, override, spec_of
from gen.config.torch_file import read_torch
from gen.data import spec_at
from gen.data.latents import Latents
from gen.data.lib.encoding import encode
from gen.data.lib.learned import latent_scale
from gen.data.lib.shards import ShardPlan
from gen.diffusion.noise import derive
from gen.training.recipes.digits import digits
from gen.training.run import Run
from gen.training.stream import ShuffledStream
from tests.gen.data.test_encode import Halves, N, Rows, how, pictures

PLAN = ShardPlan(8, quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    encode(pictures(folder / "a.npz"), folder / "out", how(), PLAN)
    return folder


def test_a_latent_is_drawn_anew_by_the_runs_seed_alone(root):
    """Draws have the mean and the variance that are kept; item i, and every position of a run, has its own."""
    data, mean = (Latents(str(root / "out"), posterior=which).open("train") for which in ("sample", "mean"))
    draws = torch.stack([data.draw(3, derive("test", k))["x"] for k in range(4000)])
    logvar = data.source.read(["logvar"], [3])["logvar"][0]
    z = (draws.mean(0) - mean[3]["x"]) / (0.5 * logvar).exp() * 4000**0.5
    ratio = draws.var(0) / logvar.exp()
    assert float(z.abs().max()) < 4.5 and float(z.square().mean()) == pytest.approx(1, abs=0.4)
    assert float((ratio - 1).abs().max()) < 5 * (2 / 4000) ** 0.5
    assert torch.equal(data[3]["x"], data[3]["x"]) and not torch.equal(data[3]["x"], mean[3]["x"])
    assert data.fingerprint != mean.fingerprint
    stream, again = (ShuffledStream(data, seed=1) for _ in range(2))
    first = {p: stream[p]["x"] for p in range(2 * len(data))}
    assert all(torch.equal(again[p]["x"], first[p]) for p in reversed(range(2 * len(data))))
    epochs = [{stream.row(p): first[p] for p in range(k * len(data), (k + 1) * len(data))} for k in (0, 1)]
    assert not any(torch.equal(epochs[0][row], epochs[1][row]) for row in epochs[0])


def test_the_splits_that_were_encoded_stay_apart(root):
    source = pictures(root / "a.npz")
    data = Latents(str(root / "out"), posterior="mean")
    assert spec_at(str(root / "out"))["name"] == "latents"
    for split in ("train", "test"):
        theirs, ours = source.open(split), data.open(split)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a["x"], 0.5 * b["x"][:, ::2, ::2]) and a["y"] == b["y"]
    assert data.classes == 2 and len(Latents(str(root / "out"), holdout=0.5).open("test")) == N // 2


def test_a_batch_has_the_bits_of_its_items(root, tmp_path):
    """Drawn or not, mirrored or not, over shards of each dtype, and as the stream reads it in training."""
    for dtype in ("float32", "bfloat16", "float16"):
        encode(pictures(tmp_path / "a.npz"), tmp_path / dtype, how(dtype=dtype, encoder=Rows()), PLAN)
        source = Latents(str(tmp_path / dtype), flip=True, standardise="position", features=True)
        for data in (source.open("train"), replace(source, posterior="mean", flip=False).open("train")):
            items = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
            batch = data.draw_batch(items, [derive(i) for i in items])
            for j, i in enumerate(items):
                item = data.draw(i, derive(i))
                assert item.keys() == batch.keys() == {"x", "y", "features"}
                assert all(torch.equal(item[key], batch[key][j]) for key in item)
            stream, positions = ShuffledStream(data, seed=1), [5, 0, 40, 17, 60]
            for name, values in stream.__getitems__(positions).items():
                assert all(
                    torch.equal(v, torch.as_tensor(stream[p][name])) for p, v in zip(positions, values, strict=True)
                )


@pytest.mark.parametrize("by", ["channel", "position"])
def test_latents_are_standardised_by_what_is_stored(root, by, tmp_path):
    """A long enough set of draws has mean 0 and deviation .5 per channel or position; a model's are decoded back."""
    data = Latents(str(root / "out"), standardise=by, scale=0.5, flip=True)
    assert data == build("data", spec_of(data))
    items = data.open("train")
    draws = torch.stack([items.draw(i, derive(k, i))["x"] for i in range(len(items)) for k in range(60)]).double()
    over = (0, 2, 3) if by == "channel" else (0,)
    assert float(draws.mean(over).abs().max()) < 0.08 and float((draws.std(over) / 0.5 - 1).abs().max()) < 0.12
    changes = {
        "data": data, "steps": 2, "batch_size": 4, "validate_every": 2, "sample_every": 0,
        "model": {"name": "dit", "preset": "digits", "size": 8, "patch": 4, "channels": 3, "classes": 2, "depth": 1},
    }  # fmt: skip
    gen.train(override(digits(), changes), tmp_path / "run", quiet=True)
    pipeline = gen.load(tmp_path / "run")
    samples = pipeline.sample(3, steps=2)

    class Coder:
        def decode(self, z):
            return z

    scale, shift = latent_scale(pipeline.info, pipeline.folder)
    assert scale.shape == ((3, 1, 1) if by == "channel" else (3, 8, 8))
    torch.testing.assert_close(pipeline.decoded(samples, Coder()).x, samples.x / scale + shift)
    raw = Latents(str(root / "out"), flip=True).open("train")
    torch.testing.assert_close((raw[2]["x"] - shift) * scale, items[2]["x"], rtol=1e-5, atol=1e-5)


def test_a_student_of_a_teachers_pairs_decodes_as_the_teacher(root, tmp_path):
    changes = {
        "data": Latents(str(root / "out"), standardise="position"), "steps": 1, "batch_size": 4, "validate_every": 0,
        "model": {"name": "dit", "preset": "digits", "size": 8, "patch": 4, "channels": 3, "classes": 2, "depth": 1},
        "sample_every": 0,
    }  # fmt: skip
    gen.train(override(digits(), changes), tmp_path / "teacher", quiet=True)
    how = {"objective.pairs": 8, "objective.teacher_sampler.steps": 1, "steps": 1, "batch_size": 4, "validate_every": 0}
    how["sample_every"] = 0
    gen.distill("reflow", tmp_path / "teacher", tmp_path / "student", changes=how, quiet=True)
    ours, theirs = (gen.load(tmp_path / name) for name in ("teacher", "student"))
    for a, b in zip(*(latent_scale(p.info, p.folder) for p in (ours, theirs)), strict=True):
        assert torch.equal(a, b) and a.shape == (3, 8, 8)


LAYOUTS = {"dit": "draw", "lightningdit": "draw", "repa": "moments", "edm2": "moments", "mar": "moments"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_others_are_written_and_read(layout, root, tmp_path):
    source, spec = pictures(root / "a.npz"), Halves(low=0.0 if layout == "edm2" else -1.0)
    encode(source, tmp_path, how(autoencoder=spec, split="train", layout=layout), PLAN)
    n = len(source.open("train"))
    options = {"holdout": 0.0, "flip": layout in ("lightningdit", "mar")}
    ours = Latents(str(root / "out"), holdout=0.0, flip=options["flip"])
    theirs = Latents(str(tmp_path), scale=0.18215 if layout == "dit" else 1.0, **options)
    first, data = ours.open("train"), theirs.open("train")
    assert len(data) == n * (2 if options["flip"] else 1) and theirs.shape == (3, 8, 8) and theirs.classes == 2
    assert theirs.latent[0]["image_range"] == ([0.0, 1.0] if layout == "edm2" else [-1.0, 1.0])
    rows = sorted(range(n), key=lambda i: (int(source.open("train")[i]["y"]), i)) if layout == "mar" else range(n)
    for i, row in enumerate(rows):
        expected, item = first.draw(row, 5), data.draw(i, 5)
        if LAYOUTS[layout] == "draw":
            expected = first[row] | {"x": first[row]["x"] * (0.18215 if layout == "dit" else 1)}
        torch.testing.assert_close(item["x"], expected["x"], rtol=1e-5, atol=1e-6)
        assert item["y"] == expected["y"]
    loaded = torch.cat([batch["x"] for batch in DataLoader(data, 5, num_workers=2)])
    assert torch.equal(loaded, torch.stack([data[i]["x"] for i in range(len(data))]))
    if layout == "lightningdit":
        stats = read_torch(tmp_path / "latents_stats.pt")
        assert stats["mean"].shape == stats["std"].shape == (1, 3, 1, 1)
        (tmp_path / "manifest.json").unlink()
        for part in ("records", "statistics"):
            (tmp_path / part).rename(root / f"{part}-{layout}")
        alone = Latents(str(tmp_path), standardise="channel", holdout=0.0)
        raw, item = data[4]["x"], alone.open("train")[4]["x"]
        torch.testing.assert_close(item, (raw - stats["mean"][0]) / stats["std"][0])


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_tree(path, names, make, listed=None, packed=False):
    files = {name: npy(make(i)) for i, name in enumerate(names)}
    if listed is not None:
        files["dataset.json"] = json.dumps({"labels": listed}).encode()
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


NAMES = [f"00000/img-mean-std-{i:08d}.npy" for i in range(12)]


def moments(i, low=0.1):
    g = np.random.default_rng(i)
    return np.concatenate([g.normal(size=(4, 3, 3)), g.uniform(low, 1, (4, 3, 3))]).astype(np.float32)


@pytest.mark.parametrize("packed", [False, True])
def test_edm2s_tree_and_zip_are_read_and_their_range_must_be_said(tmp_path, packed):
    listed = [[name, i % 3] for i, name in enumerate(NAMES)][::-1]
    path = write_tree(tmp_path / ("a.zip" if packed else "a"), NAMES, moments, listed, packed)
    with pytest.raises(UserError, match=r"REPA encodes images in \[-1, 1\], EDM2 in \[0, 1\], and their files look"):
        Latents(str(path)).open("train")
    data = Latents(str(path), image_range=(0, 1), posterior="mean", holdout=0.0).open("train")
    for i, item in enumerate(data):
        assert torch.equal(item["x"], torch.from_numpy(moments(i)[:4])) and item["y"] == i % 3
    assert data.where(2).endswith(NAMES[2])


def wrong():
    listed = [[name, 0] for name in NAMES]
    return {
        "log variances": ({"make": lambda i: moments(i, -1)}, "has values below 0, as log variances have"),
        "odd": ({"make": lambda i: moments(i)[:7]}, "7 channels are no mean and deviation"),
        "other shape": ({"make": lambda i: moments(i)[:, : 3 - i // 11]}, "mean is [4, 2, 3], that of the first"),
        "not listed": ({"listed": listed[:-1]}, "not listed in dataset.json"),
        "not there": ({"listed": [*listed, ["b.npy", 0]]}, "not among the files"),
        "no labels": ({"listed": [["a"]]}, "is no list of [file, label]"),
        "pickled": ({"make": lambda i: np.array([{}], dtype=object)}, "the header says object"),
    }


@pytest.mark.parametrize("case", wrong())
def test_wrong_trees_are_refused_in_one_line(case, tmp_path):
    changes, words = wrong()[case]
    write_tree(tmp_path, NAMES, changes.get("make", moments), changes.get("listed"))
    with pytest.raises(UserError) as error:
        list(Latents(str(tmp_path), image_range=(0, 1), holdout=0.0).open("train"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_deviations_where_log_variances_are_said_are_noticed(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, moments=moments(0), moments_flip=moments(1))
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.JPEG.npz").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="has no value below 0, as standard deviations have none"):
        Latents(str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "dit"}, "keeps no splits: say which, --split train"),
        ({"layout": "mar", "split": "train", "flip": False}, "the layout mar needs mean_flip, which there are none of"),
        ({"layout": "edm2", "split": "train"}, "is of images in [0.0, 1.0], the autoencoder takes [-1.0, 1.0]"),
        ({"layout": "repa", "split": "train", "autoencoder": Halves(noisy=False)}, "the layout repa needs mean"),
    ],
)
def test_layouts_that_cannot_hold_it_are_refused(changes, words, root, tmp_path):
    with pytest.raises(UserError) as error:
        encode(pictures(root / "a.npz"), tmp_path / "out", how(**changes), PLAN)
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_scales_that_contradict_each_other_are_refused(root):
    for changes in ({"shift": 1.0}, {"scale": (1.0, 1.0, 1.0)}):
        with pytest.raises(UserError, match="standardise = channel takes the shift"):
            Latents(str(root / "out"), standardise="channel", **changes)
    with pytest.raises(UserError, match="the lowest value, then the highest"):
        Latents(str(root / "out"), image_range=(1, 0))
    with pytest.raises(UserError, match=r"image_range is \[-1.0, 1.0\] there, \[0.0, 1.0\] here"):
        Latents(str(root / "out"), image_range=(0, 1)).open("train")
    assert Run(model="dit-s/2", data=Latents(str(root / "out"))).model.channels == 3
