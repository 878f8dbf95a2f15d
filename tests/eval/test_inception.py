"""The FID Inception against public tools: with seeded weights and pictures their numbers come out, by every rule.

The expected numbers are those of torch-fidelity 0.4.0, pytorch-fid 0.3.0, clean-fid 0.1.35 and torchmetrics 1.9.0.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gen.cli import main
from gen.config.errors import MissingDependency, UserError
from gen.config.reading import file_sha256
from gen.config.spec import build
from gen.eval.features import Classifier
from gen.eval.features.inception import Inception, InceptionClassifier, InceptionExtractor
from gen.eval.features.lib.images import resized_like_tf1
from gen.eval.features.lib.inception_net import LAYERS, InceptionNet, canonical, seeded_weights, shapes
from gen.eval.features.lib.weights import tensors_sha256


def pictures():
    """Samples and references, uint8 [48, 3, 32, 32]: random blocks of 4 x 4 pixels."""
    first, second = (np.random.default_rng(seed).integers(0, 256, (48, 8, 8, 3), np.uint8) for seed in (1, 2))
    return [torch.from_numpy(x.repeat(4, 1).repeat(4, 2)).permute(0, 3, 1, 2) for x in (first, second // 2 + 64)]


TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def state():
    return seeded_weights()


@pytest.fixture(scope="module")
def net(state):
    return InceptionNet(state)


def extractor(net, resize="tf1", layer="2048", batch=1):
    kind = InceptionClassifier if layer in ("2048", "logits", "logits_unbiased") else InceptionExtractor
    return kind(net, "", resize, layer, batch)


def other_names(state):
    """The same weights as NVIDIA and OpenAI name them; the names were written down from their files' description."""
    blocks = ["Mixed_5b", "Mixed_5c", "Mixed_5d", *(f"Mixed_6{c}" for c in "abcde"), *(f"Mixed_7{c}" for c in "abc")]
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
    towers = {
        "5": {"branch5x5": "tower.", "branch3x3dbl": "tower_1.", "branch_pool": "tower_2."},
        "6a": {"branch3x3dbl": "tower."},
        "6": {"branch7x7": "tower.", "branch7x7dbl": "tower_1.", "branch_pool": "tower_2."},
        "7a": {"branch3x3": "tower.", "branch7x7x3": "tower_1."},
        "7": {"branch3x3": "tower_", "branch3x3dbl": "tower_1_", "branch_pool": "tower_2_"},
    }
    leaves = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
    out = {f"output.{leaf}": state[f"fc.{leaf}"] for leaf in ("weight", "bias")}
    for name, value in state.items():
        parts = name.split(".")
        leaf = leaves.get(".".join(parts[-2:]))
        if leaf is None:
            continue
        if parts[0] in stem:
            number = stem.index(parts[0])
            out[f"layers.conv{f'_{number}' if number else ''}.{leaf}"] = value
            continue
        number, kind = blocks.index(parts[0]), parts[0].removeprefix("Mixed_")
        branch, _, step = parts[1].rpartition("_") if re.search(r"_\d[ab]?$", parts[1]) else (parts[1], "", "1")
        table = towers.get(kind) or towers[kind[0]]
        side = "mixed_conv" + {"a": "", "b": "_1"}[step[-1]] if step[-1] in "ab" else f"conv_{int(step) - 1}"
        inner = table.get(branch, "") + side.removesuffix("_0")
        out[f"layers.mixed{f'_{number}' if number else ''}.{inner}.{leaf}"] = value
    return out


def test_the_seeded_weights_are_the_ones_that_tools_were_given(state) -> None:
    assert len(state) == 472 and sum(value.numel() for value in state.values()) == 23_885_392
    first = state["Conv2d_1a_3x3.conv.weight"].flatten()
    torch.testing.assert_close(first[:3], torch.tensor([0.06798296421766, 0.28072598576546, 0.04382125660778]))
    sums = {"Conv2d_1a_3x3.conv": -12.25933090, "Mixed_6d.branch1x1.conv": 20.58632656, "fc": 53.57972028}
    for name, total in sums.items():
        assert float(state[f"{name}.weight"].double().sum()) == pytest.approx(total, abs=1e-8)


def test_features_by_every_layer_and_rule(net) -> None:
    picture = pictures()[0][:1]
    expected = {
        ("tf1", "2048"): [0.18567702, 0, 1.40245461],
        ("tf1", "64"): [0.12854898, 0.00231811, 0.62036377],
        ("tf1", "logits_unbiased"): [2.52179599, 1.08741903, -0.78815383],
        ("pytorch-fid", "2048"): [0.17080070, 0, 1.37434435],
        ("clean", "2048"): [0.19365482, 0, 1.50947833],
    }
    for (resize, layer), begins in expected.items():
        one = extractor(net, resize, layer)
        torch.testing.assert_close(one(picture)[0, :3], torch.tensor(begins, dtype=torch.float32), **TOLERANCE)
        assert one.name == f"inception {layer} {resize}"
    both = extractor(net).outputs(picture)
    torch.testing.assert_close(both["spatial"][0, :4], torch.tensor([0.00681254, 1.69332099, 0, 0]), **TOLERANCE)
    assert both["spatial"].shape == (1, 2023) and both["features"].shape == (1, 2048)
    unbiased = extractor(net, layer="logits_unbiased")(picture)
    torch.testing.assert_close(extractor(net).head(both["features"]), unbiased)
    torch.testing.assert_close(extractor(net, layer="logits")(picture) - unbiased, net.fc.bias[None], **TOLERANCE)


@pytest.mark.slow
def test_single_precision_is_near_double_precision(state, net) -> None:
    picture = pictures()[0][:1]
    double = InceptionNet({name: value.double() for name, value in state.items()}).double()
    x = (resized_like_tf1(picture, 299) - 128) / 128
    wanted = ("64", "192", "768", "2048", "spatial")
    single, exact = net(x, wanted), double(x.double(), wanted)
    assert {name: tuple(value.shape) for name, value in single.items()} == {
        "64": (1, 64), "192": (1, 192), "768": (1, 768), "2048": (1, 2048), "spatial": (1, 2023)
    }  # fmt: skip
    for name in wanted:
        torch.testing.assert_close(single[name].double(), exact[name], **TOLERANCE)
    assert isinstance(extractor(net), Classifier) and not isinstance(extractor(net, layer="768"), Classifier)
    grey = picture[:, :1]
    assert torch.equal(extractor(net, layer="64")(grey), extractor(net, layer="64")(grey.repeat(1, 3, 1, 1)))


def test_both_families_of_names_are_one_network(state) -> None:
    other = other_names(state)
    assert len(other) == 94 * 4 + 2
    other |= {"theta": torch.zeros(1)}
    norms = [name.removesuffix("weight") for name in state if name.endswith(".bn.weight")]
    tracked = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    digests = {tensors_sha256(canonical(given, "x")) for given in (state, other, {**state, **tracked})}
    assert len(tracked) == 94 and len(digests) == 1


@pytest.mark.slow
def test_import_remembers_its_source(tmp_path, state, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": other_names(state)}, "nvidia.pt")
    torch.save(state, "plain.pth")
    assert main(["import", "nvidia.pt", "--from", "inception", "--out", "weights"]) == 0
    assert "weights/inception.safetensors" in capsys.readouterr().out
    with safe_open("weights/inception.safetensors", "pt") as file:
        about = file.metadata()
    assert about["source"] == "nvidia.pt" and about["source_sha256"] == file_sha256(tmp_path / "nvidia.pt")
    paths = "weights/inception.safetensors", "plain.pth"
    loaded = [build("eval.features", {"name": "inception", "path": path}).load() for path in paths]
    assert loaded[0].sha256 == loaded[1].sha256 == about["digest"] and len({one.name for one in loaded}) == 1
    assert main(["import", "nvidia.pt", "--from", "inception", "--out", "weights"]) == 2
    assert "weights/inception.safetensors exists" in capsys.readouterr().err
    (tmp_path / "plain.pth").rename(tmp_path / "weights-0123abcd.pth")
    assert main(["import", "weights-0123abcd.pth", "--from", "inception", "--out", "b.safetensors"]) == 2
    assert "its name says 0123abcd" in capsys.readouterr().err
    with pytest.raises(UserError, match="its name says 0123abcd"):
        Inception("weights-0123abcd.pth").load()


def test_weights_of_another_network_are_refused(tmp_path, state) -> None:
    file = tmp_path / "w.safetensors"
    from safetensors.torch import save_file

    small = {name: torch.zeros(1) for name in shapes()}
    for wrong, says in (
        ({name: value for name, value in small.items() if "7c" not in name}, "it misses 45 tensors"),
        ({**small, "AuxLogits.fc.weight": torch.zeros(1)}, "it has besides 1 tensors"),
        (small, r"fc.weight is \[1\], not \[1008, 2048\]"),
    ):
        save_file(wrong, file)
        with pytest.raises(UserError, match=says) as error:
            Inception(str(file)).load()
        assert "\n" not in str(error.value)
    with pytest.raises(MissingDependency, match="pt_inception-2015-12-05-6726825d"):
        Inception().load()
    with pytest.raises(UserError, match="resize"):
        Inception(resize="bilinear")


def frechet(x: torch.Tensor, y: torch.Tensor) -> float:
    """The distance of two small sets: the trace of the root is the nuclear norm of their centred rows' products."""
    x, y = x.double(), y.double()
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root)


def of_every_layer(net, pictures):
    """Outputs of every layer by the rule tf1, of all in one pass."""
    parts = [net((resized_like_tf1(part, 299) - 128) / 128, (*LAYERS, "spatial")) for part in pictures.split(16)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


@pytest.mark.slow
def test_distances_of_public_tools(net) -> None:
    samples, reference = pictures()
    tf1 = extractor(net, batch=16)
    x, y = of_every_layer(net, samples), of_every_layer(net, reference)
    assert frechet(x["2048"], y["2048"]) == pytest.approx(464.55700718, rel=1e-5)
    assert frechet(x["spatial"], y["spatial"]) == pytest.approx(670.30159025, rel=1e-5)
    assert float(x["2048"].mean()) == pytest.approx(0.72336033137, abs=1e-6)
    assert float(x["spatial"].mean()) == pytest.approx(0.70481199823, abs=1e-6)
    layers = {
        "64": (0.40773667862, 5.03526353),
        "192": (0.46744965452, 27.02061037),
        "768": (0.55001354850, 96.51685209),
    }
    for layer, (mean, distance) in layers.items():
        assert float(x[layer].mean()) == pytest.approx(mean, abs=1e-6)
        assert frechet(x[layer], y[layer]) == pytest.approx(distance, rel=1e-5)
    unbiased = tf1.head(x["2048"])
    for logits, mean in ((unbiased, 0.15933115974), (unbiased + net.fc.bias, 0.16320118933)):
        assert float(logits.mean()) == pytest.approx(mean, abs=1e-6)
    for resize, distance in (("pytorch-fid", 468.50288696), ("clean", 571.58948266), ("torchmetrics", 463.862122)):
        other = replace(tf1, resize=resize)
        assert frechet(other(samples), other(reference)) == pytest.approx(distance, rel=1e-5)
    probabilities = unbiased.double().softmax(1)
    order = np.random.RandomState(2020).permutation(48)
    parts = probabilities[torch.from_numpy(order)].split(12)
    scores = [float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp()) for p in parts]
    assert np.mean(scores) == pytest.approx(1.0083342393, abs=1e-7)
