"""A torch Dataset and an nn.Module of one's own, given as objects: trained, resumed, loaded, or refused in one line."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import override
from gen.data.given import GivenData
from gen.training.objectives.denoise import Denoising
from gen.training.run import Run, Sampler
from tests.gen.tiny import tiny

NAME = f"{__name__}:OwnNet"


class Bars(Dataset):
    """Bars of two classes, as a user of accelerate has them: ToTensor's range, (picture, label)."""

    classes = ("upright", "lying")

    def __init__(self, n=40, kind="pair"):
        self.n, self.kind = n, kind

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x = torch.zeros(1, 8, 8)
        if i % 2:
            x[:, i % 8] = 1
        else:
            x[:, :, i % 8] = 1
        byte = (x * 255).byte()
        return {
            "pair": (byte, i % 2),
            "tensor": byte,
            "numpy": (byte.numpy(), np.int64(i % 2)),
            "float": (x * 2 - 1, torch.tensor(i % 2)),
            "totensor": (x, i % 2),
            "latents": x * 9,
            "dict": {"x": byte, "y": i % 2, "phase": torch.tensor([i / 8])},
        }[self.kind]


class OwnNet(nn.Module):
    def __init__(self, width=8, classes=2):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))
        self.time = nn.Linear(1, width)
        self.label = nn.Embedding(classes + 1, width)

    def forward(self, x, t, cond, *, s=None, tap=None):
        c = self.time(t[:, None]) + (self.label(cond["y"]) if "y" in cond else 0)
        h = self.body[0](x) + c[:, :, None, None]
        return self.body[2](self.body[1](h)) + cond.get("phase", torch.zeros(1, 1))[..., None, None]

    def null(self, cond):
        return {k: torch.full_like(v, 2) if k == "y" else torch.zeros_like(v) for k, v in cond.items()}


def settings(**changes):
    every = {"log_every": 1, "save_every": 2, "sample_every": 0, "validate_every": 3}
    parts = {"objective": Denoising(), "sampler": Sampler("euler", steps=2)}
    return {**parts, **every, "batch_size": 8, "steps": 4, **changes}


def weights(folder):
    return json.loads((folder / "final/manifest.json").read_text())["files"]["net.safetensors"]["sha256"]


def test_own_objects_train_resume_to_the_bit_and_are_loaded(tmp_path, capsys):
    torch.manual_seed(3)
    net, data = OwnNet(), Bars()
    before = copy.deepcopy(net.state_dict())
    run = Run(data=data, model=net, **settings())
    done = gen.train(run, tmp_path / "whole", quiet=True)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())  # it begins there, and is left alone
    gen.train(override(run, {"steps": 2}), tmp_path / "parts", quiet=True)
    gen.train(Run(data=Bars(), model=copy.deepcopy(net), **settings()), tmp_path / "parts", quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")

    spec = json.loads((tmp_path / "whole/run.json").read_text())["run"]
    assert spec["data"]["kind"] == f"{__name__}:Bars" and spec["data"]["length"] == 40 and spec["model"]["kind"] == NAME
    x = done.pipeline().sample(4, cond="lying", seed=1).x
    for model in (net, NAME):
        pipeline = gen.load(tmp_path / "whole", model=model)
        assert torch.equal(pipeline.sample(4, cond=1, seed=1).x, x) and pipeline.classes == 2
    assert torch.equal(gen.load(tmp_path / "whole", allow=("tests",)).sample(4, cond=1, seed=1).x, x)
    with pytest.raises(UserError, match=rf"names '{NAME}', which would run the module"):
        gen.load(tmp_path / "whole")
    with pytest.raises(UserError, match=r"OwnNet with tensors \w+, expected a .*OwnNet with tensors \w+$"):
        gen.load(tmp_path / "whole", model=OwnNet(width=4))
    words = ["sample", str(tmp_path / "whole"), "-n", "2", "--out", str(tmp_path / "a.png"), "--quiet"]
    assert main(words) == 2 and "--allow tests" in capsys.readouterr().err
    assert main([*words, "--allow", "tests"]) == 0


class Shapes(Bars):
    """Bars in two buckets, 8 x 8 and 8 x 12."""

    def __init__(self, wrong=None):
        super().__init__()
        self.buckets = [int(i % 4 == 3) for i in range(40)]
        self.wrong = wrong

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (torch.cat([x, x[:, :, :4]], 2) if i % 4 == 3 and i != self.wrong else x), y


def test_items_of_several_shapes_lie_in_buckets_of_their_own(tmp_path):
    run = Run(model=OwnNet(), data=Shapes(), **settings())
    assert (run.data.shape, run.data.sizes, run.data.buckets) == ((1, 8, 8), ((8, 8), (8, 12)), 2)
    assert run.data.open("train").bucket_counts() == {"8x8": 27, "8x12": 9}
    gen.train(run, tmp_path / "run", quiet=True)
    torch.manual_seed(1)
    again = Run(model=OwnNet(), data=Shapes(), **settings())
    gen.train(again, tmp_path / "on", resume=str(tmp_path / "run/checkpoints/step-0000002"), quiet=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "on")
    info = json.loads((tmp_path / "run/final/manifest.json").read_text())
    assert info["sizes"] == [[8, 8], [8, 12]]
    with pytest.raises(UserError, match=r"x of item 35 is \[1, 8, 8\], those of bucket 1 \[1, 8, 12\]"):
        GivenData(Shapes(wrong=35)).open("train")[31]
    for buckets, said in [([0] * 39, "a number from 0 for each of the 40"), ([0, 2] * 20, "no item is of bucket 1")]:
        data = Bars()
        data.buckets = buckets
        with pytest.raises(UserError, match=said):
            GivenData(data)


def test_both_are_named_on_the_command_line_too(tmp_path, capsys):
    words = [
        "train",
        "digits",
        "--data",
        f"{__name__}:Bars",
        "--model",
        NAME,
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    words += ["--steps", "2", "--batch-size", "8", "--validate-every", "0", "--sample-every", "0"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["train", str(tmp_path / "run"), "--out", str(tmp_path / "b"), "--quiet"]) == 2
    assert f"the data were given as an object of {__name__}:Bars: give it again" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tensor", "pair", "numpy", "float", "dict", "totensor", "latents"])
def test_items_of_every_kind_are_read_as_the_contract_has_them(kind):
    stated = {"totensor": {"value_range": (0, 1)}, "latents": {"value_range": None}}.get(kind, {})
    data = GivenData(Bars(kind=kind), **stated)
    train, test = data.open("train"), data.open("test")
    assert (len(train), len(test), data.shape) == (36, 4, (1, 8, 8)) and train.fingerprint != test.fingerprint
    x = train[3]["x"]
    assert x.dtype == torch.float32 and (x.min(), x.max()) == ((0, 9) if kind == "latents" else (-1, 1))
    assert (
        data.classes == (0 if kind in ("tensor", "latents") else 2) and data.label_names == Bars.classes[: data.classes]
    )
    assert {k: v.dtype for k, v in train[3].items() if k != "x"} == ({"y": torch.int64} if data.classes else {}) | (
        {"phase": torch.float32} if kind == "dict" else {}
    )
    whole = GivenData(Bars(kind=kind), Bars(16, kind), **stated)
    assert (len(whole.open("train")), len(whole.open("test"))) == (40, 16)


def test_conditions_reach_the_network(tmp_path):
    done = gen.train(Run(data=Bars(kind="dict"), model=OwnNet(), **settings(steps=1)), tmp_path / "run", quiet=True)
    cond = {"y": torch.tensor([0, 1]), "phase": torch.tensor([[0.0], [3.0]])}
    assert done.pipeline().sample(2, cond).x.shape == (2, 1, 8, 8)


def test_a_fingerprint_of_ones_own_is_compared(tmp_path):
    data = Bars()
    data.fingerprint = "first"
    gen.train(Run(data=data, model=OwnNet(), **settings(steps=2)), tmp_path / "run", quiet=True)
    data.fingerprint = "second"
    with pytest.raises(UserError, match="the content of data, validation differs"):
        gen.train(Run(data=data, model=OwnNet(), **settings()), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"data.length \(40 there, 41 now\)"):
        gen.train(Run(data=Bars(41), model=OwnNet(), **settings()), tmp_path / "run", quiet=True)


class Unnulled(nn.Module):
    def forward(self, x, t, cond, *, s=None, tap=None):
        return x


class Short(OwnNet):
    def forward(self, x, t):
        return x


class Halved(OwnNet):
    def forward(self, x, t, cond, *, s=None, tap=None):
        return x[..., ::2]


class Failing(OwnNet):
    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.body[0](x.repeat(1, 2, 1, 1))


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 8, 8)


class Odd(Bars):
    """Items that are wrong from the third on."""

    def __init__(self, item):
        super().__init__(4)
        self.item = item

    def __getitem__(self, i):
        return self.item if i > 1 else super().__getitem__(i)


UNCLASSED = type("Unclassed", (Bars,), {"classes": None})
BLANK = torch.zeros(1, 8, 8)
DIT = tiny().model.build()
WRONG = {
    "iterable": ({"data": Stream()}, r"^data is Stream; a data set has len\(data\) and data\[i\] \(map-style\)$"),
    "loader": ({"data": DataLoader(Bars(), 4)}, r"^data is a DataLoader: give its data set, loader.dataset"),
    "empty": ({"data": Bars(0)}, r"^data, a Bars, is empty$"),
    "words": ({"data": Odd("a bar")}, r"Odd: x of item 2 is str, expected a tensor, an array or a number$"),
    "shape": ({"data": Odd((BLANK[:, :4].byte(), 0))}, r"x of item 2 is \[1, 4, 8\], that of item 0 \[1, 8, 8\]$"),
    "range": ({"data": Odd((BLANK + 3, 0))}, r"x of item 2 runs from 3 to 3, and value_range is \[-1"),
    "whole": ({"data": Odd((BLANK.long(), 0))}, r"x of item 2 is torch.int64; pictures are uint8 or floats"),
    "label": ({"data": Odd((BLANK.byte(), 7))}, r"the label of item 2 is 7; allowed: 0 .. 1$"),
    "no x": ({"data": Odd({"image": BLANK})}, r'item 2 has image, and no "x"'),
    "index": ({"data": Odd({"x": BLANK.byte(), "index": 3})}, r"index of item 2 is int, and the name is gen's own"),
    "classes": ({"data": UNCLASSED()}, r"Unclassed has labels and does not say how many: give it an attribute"),
    "forward": ({"model": Short()}, r"Short has forward\(x, t\); it must take \(x, t, cond, \*, s=None, tap=None\)$"),
    "halved": ({"model": Halved()}, r"Halved: forward returns \[1, 1, 8, 4\] for x .*; it must return \[1, 1, 8, 8\]$"),
    "failing": (
        {"model": Failing()},
        r"Failing: forward fails on x \[1, 1, 8, 8\], t \[1\] and cond .*: RuntimeError",
    ),
    "null": ({"model": Unnulled()}, r"Unnulled has no null\(cond\), the condition that stands for none"),
    "built": ({"model": DIT}, r"DiTNet can be built from its spec: give model.spec, and weights to start"),
    "no data": ({"data": None}, r"the model, a OwnNet, is an object, and needs data to fit$"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_before_any_work(what, tmp_path):
    changes, message = WRONG[what]
    with pytest.raises(UserError, match=message) as error:
        gen.train(Run(**{"data": Bars(), "model": OwnNet()} | settings() | changes), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run/checkpoints").exists()


def test_pictures_of_an_unstated_range_warn():
    with pytest.warns(
        UserWarning, match=r"none of 8 pictures has a value below 0, .* GivenData\(my_dataset, value_range="
    ):
        GivenData(Bars(kind="totensor"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GivenData(Bars(kind="float"))
