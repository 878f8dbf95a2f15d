"""A picture as a condition, joined to x: it is used, can be left out, and a wrong one is one line."""

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import find
from gen.data.digits import Digits
from gen.training.run import Run
from tests.models.test_families import inputs, random_net, rows_of

NAMES = ["dit", "pixart", "unet"]


def net_and_inputs(name):
    net = random_net(find(name, "models").preset("digits", cond_channels=2))
    x, t, cond = inputs(net)
    return net, x, t, {**cond, "image": torch.randn(3, 2, 8, 8, dtype=torch.float64)}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_picture_matters_and_null_is_grey(name):
    net, x, t, cond = net_and_inputs(name)
    out = net(x, t, cond)
    assert out.shape == x.shape
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], rows_of(cond, slice(i, i + 1)))[0], out[i])
    null = net.null(cond)
    assert null.keys() == cond.keys() and not null["image"].any() and null["y"].tolist() == [10] * 3
    assert not torch.allclose(out, net(x, t, {**cond, "image": null["image"]}))
    for wrong in ({}, {"image": cond["image"][:, :1]}, {"image": cond["image"].long()}):
        with pytest.raises(UserError, match=r"needs cond\['image'\], floats \[3, 2, 8, 8\]") as caught:
            net(x, t, {key: cond[key] for key in cond if key != "image"} | wrong)
        assert "\n" not in str(caught.value)


class Halved:
    """Digits, with their halved resolution as a condition."""

    def __init__(self, split="train"):
        self.data = Digits().open(split)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x = self.data[i]["x"]
        return {"x": x, "image": torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_short_training_learns_to_double_the_resolution(name, tmp_path):
    sizes = {"dit": {"width": 48, "depth": 2, "heads": 2}, "unet": {"width": 16, "groups": 4, "attention": ()}}[name]
    model = {"name": name, "preset": "digits", "classes": 0, "cond_channels": 1, **sizes}
    run = Run(model=model, data=Halved(), objective={"name": "denoise", "times": "logit_normal"}, steps=250,
              batch_size=32, optim={"name": "adamw", "lr": 3e-3}, schedule={"name": "cosine", "warmup": 20},
              sample_every=0, validate_every=0, save_every=0, ema=())  # fmt: skip
    gen.train(run, tmp_path / "run", quiet=True)
    test = Halved("test")
    items = [test[i] for i in range(48)]
    x, image = (torch.stack([item[key] for item in items]) for key in ("x", "image"))
    pipeline = gen.load(tmp_path / "run")

    def error(picture):
        return float((pipeline.sample(cond={"image": picture}, solver="euler", steps=8).x - x).square().mean())

    right, wrong, none = error(image), error(image.roll(1, 0)), error(torch.zeros_like(image))
    assert right < 0.6 * min(wrong, none)
