"""Layouts of other repositories, read by the file operations of their own loaders, which were written anew here.

fast-DiT's CustomDataset, REPA's CustomDataset, EDM2's ImageFolderDataset, LightningDiT's ImgLatentDataset, and MAR's
CachedFolder with torchvision's DatasetFolder under it: which files they look for, in which order, and what they check.
"""
# ruff: noqa: PTH118, PTH119, PTH122, PTH123, PTH208 - os.path and os.walk, as theirs

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.data.lib.encoding import encode
from gen.data.lib.shards import ShardPlan
from gen.diffusion.noise import Noise, derive
from tests.gen.data.test_encode import Halves, how, pictures

N = 70
PLAN = ShardPlan(16, quiet=True)


def below(root):
    """The relative path of every file, as os.walk finds them."""
    return {os.path.relpath(os.path.join(at, file), root) for at, _, files in os.walk(root) for file in files}


def of_kinds(names):
    Image.init()
    kinds = {*Image.EXTENSION, ".npy"}
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in kinds)


def labels_of(root, names):
    with open(os.path.join(root, "dataset.json"), "rb") as stream:
        known = dict(json.load(stream)["labels"])
    labels = np.array([known[name.replace("\\", "/")] for name in names])
    assert labels.ndim == 1
    return labels.astype(np.int64)


def fast_dit(root):
    folders = [os.path.join(root, f"imagenet256_{kind}") for kind in ("features", "labels")]
    names = [sorted(os.listdir(folder)) for folder in folders]
    assert len(names[0]) == len(names[1])
    batch = [torch.stack([torch.from_numpy(np.load(os.path.join(folder, name))) for name in some])
             for folder, some in zip(folders, names, strict=True)]  # fmt: skip
    x, y = (values.squeeze(dim=1) for values in batch)  # as its loop takes them from a batch
    return names[0], x, y


def edm2(root):
    everything = below(root)
    names = of_kinds(everything)
    arrays = [np.load(os.path.join(root, name)) for name in names]
    arrays = [array.reshape(-1, *array.shape[-2:]) for array in arrays]
    assert len({array.shape for array in arrays}) == 1 and "dataset.json" in everything
    return names, torch.from_numpy(np.stack(arrays)), torch.from_numpy(labels_of(root, names))


def repa(root):
    images, features = (os.path.join(root, name) for name in ("images", "vae-sd"))
    shown, names = of_kinds(below(images)), of_kinds(below(features))
    assert len(shown) == len(names)
    arrays = torch.from_numpy(np.stack([np.load(os.path.join(features, name)) for name in names]))
    pixels = [np.array(Image.open(os.path.join(images, name))) for name in shown]
    pixels = [image.reshape(*image.shape[:2], -1).transpose(2, 0, 1) for image in pixels]
    return names, arrays, torch.from_numpy(labels_of(features, names)), torch.from_numpy(np.stack(pixels))


def lightning_dit(root, key):
    files = sorted(str(file) for file in root.glob("*.safetensors"))
    rows, labels = [], []
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for i in range(opened.get_slice("labels").get_shape()[0]):
                rows.append(opened.get_slice(key)[i : i + 1].squeeze(0))
                labels.append(opened.get_slice("labels")[i : i + 1].squeeze(0))
    stats = torch.load(root / "latents_stats.pt", weights_only=True)
    return torch.stack(rows), torch.stack(labels), stats["mean"], stats["std"]


def mar(root, key):
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    files = [(os.path.join(at, name), i) for i, owner in enumerate(classes)
             for at, _, names in sorted(os.walk(os.path.join(root, owner), followlinks=True))
             for name in sorted(names) if name.lower().endswith(".npz")]  # fmt: skip
    assert {i for _, i in files} == set(range(len(classes))), "a class without files is refused"
    arrays = [np.load(path)[key] for path, _ in files]
    return [path for path, _ in files], torch.from_numpy(np.stack(arrays)), [i for _, i in files]


def encoded(tmp_path, layout, low=-1.0, **changes):
    """The folder, and what the data and the autoencoder give for every row."""
    source = pictures(tmp_path / "a.npz", N)
    settings = how(autoencoder=Halves(low=low), split="train", layout=layout, **changes)
    encode(source, tmp_path / "out", settings, PLAN)
    data = source.open("train")
    x, y = (torch.stack([data[i][key] for i in range(len(data))]) for key in ("x", "y"))
    return tmp_path / "out", x, y


def moments(x):
    """Mean and log variance of tests.gen.data.test_encode.Halves."""
    return 0.5 * x[:, :, ::2, ::2], -1 - x[:, :, 1::2, ::2]


def test_fast_dit(tmp_path):
    root, x, y = encoded(tmp_path, "dit")
    names, latents, labels = fast_dit(root)
    rows = torch.tensor([int(name.removesuffix(".npy")) for name in names])  # 0, 1, 10, 11, ... in order of name
    mean, logvar = moments(x)
    noise = Noise(tuple(derive("latents", row, False) for row in range(len(x)))).normal("posterior", mean.shape[1:])
    torch.testing.assert_close(latents, (0.18215 * (mean + (0.5 * logvar).exp() * noise))[rows])
    assert torch.equal(labels, y[rows]) and latents.dtype == torch.float32 and labels.dtype == torch.int64


@pytest.mark.parametrize("layout", ["edm2", "repa"])
def test_edm2_and_repa(layout, tmp_path):
    root, x, y = encoded(tmp_path, layout, low=0.0 if layout == "edm2" else -1.0)
    names, both, labels, *shown = edm2(root) if layout == "edm2" else repa(root)
    mean, logvar = moments(x)
    torch.testing.assert_close(both, torch.cat([mean, (0.5 * logvar).exp()], 1))
    assert torch.equal(labels, y) and both.dtype == torch.float32 and len(names) == len(x)
    assert layout == "edm2" or torch.equal(shown[0], to_uint8(x))


@pytest.mark.parametrize("flip", [True, False])
def test_lightning_dit(flip, tmp_path):
    root, x, y = encoded(tmp_path, "lightningdit", flip=flip)
    latents, labels, mean, std = lightning_dit(root, "latents")
    mirrored = lightning_dit(root, "latents_flip")[0]
    assert torch.equal(labels, y) and mean.shape == std.shape == (1, 3, 1, 1)
    centre, logvar = moments(x)
    assert ((latents - centre) / (0.5 * logvar).exp()).std() == pytest.approx(1, abs=0.03)
    assert torch.equal(latents, mirrored) != flip
    both = torch.cat([latents, mirrored]) if flip else latents
    torch.testing.assert_close(mean, both.mean((0, 2, 3), keepdim=True), atol=0.05, rtol=0)
    torch.testing.assert_close(std, both.std((0, 2, 3), keepdim=True), atol=0, rtol=0.05)


def test_mar(tmp_path):
    root, x, y = encoded(tmp_path, "mar")
    for key, given in (("moments", x), ("moments_flip", x.flip(3))):
        paths, values, labels = mar(root / "moments", key)
        rows = torch.tensor([int(os.path.basename(path).removesuffix(".npz")) for path in paths])
        torch.testing.assert_close(values, torch.cat(moments(given), 1)[rows])
        assert labels == y[rows].tolist()


def test_what_their_loaders_cannot_read_is_not_written(tmp_path):
    """REPA's needs labels; MAR's numbers class folders in order, so a class without pictures would shift the others."""
    np.savez(tmp_path / "bare.npz", arr_0=np.zeros((8, 16, 16, 3), np.uint8))
    bare = replace(pictures(tmp_path / "a.npz"), path=str(tmp_path / "bare.npz"))
    with pytest.raises(UserError, match="repa needs labels"):
        encode(bare, tmp_path / "out", how(split="train", layout="repa"), PLAN)
    gap = np.array([0, 0, 0, 2, 2, 2, 3, 3])
    np.savez(tmp_path / "gap.npz", arr_0=np.zeros((8, 16, 16, 3), np.uint8), arr_1=gap)
    with pytest.warns(UserWarning, match="nothing to train the labels 1"), pytest.raises(UserError, match="label 1"):
        encode(replace(bare, path=str(tmp_path / "gap.npz")), tmp_path / "mar", how(split="train", layout="mar"), PLAN)
