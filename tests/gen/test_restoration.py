"""Pipeline.restore: any operator, method and model; what the samples have to do with the measurements."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

import gen
from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import override
from gen.data.degraded import Degraded
from gen.data.digits import Digits
from gen.diffusion.path import Shift
from gen.models.beside import Beside
from gen.models.unet import UNet
from gen.operators.pool import Pool
from gen.restoration import side_by_side
from gen.training.objectives.restore import Restoration
from gen.training.previews import preview
from gen.training.recipes.digits import digits
from gen.training.run import Run, Sampler
from gen.training.trainer import train

UNET = UNet(size=8, channels=1, classes=0, width=8, multipliers=(1, 1), blocks=1, attention=(), head_width=8, groups=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 3, "batch_size": 8}
    folder = tmp_path_factory.mktemp("restoration") / "run"
    train(override(digits(), changes | {"sample_every": 0, "validate_every": 0, "ema": ()}), folder, quiet=True)
    return gen.load(folder)


Y = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)


OWN = {"repaint": {"repeats": 1}, "pnp_flow": {"draws": 1}}  # of methods, beside steps
UNTOLD = {"ddnm", "repaint", "sdedit", "flow_dps", "pnp_flow", "red_diff"}  # of the noise


@pytest.mark.parametrize("method", sorted({"pigdm", "exact", "dps", "diffpir", "ddrm", *UNTOLD}))
def test_every_method_restores_with_a_network(model, method):
    noise = None if method in UNTOLD else 0.1
    spec = {"name": method, "steps": 4, **OWN.get(method, {})}
    made = model.restore(Y, "pool", spec, noise=noise, seed=2)
    assert made.x.shape == (3, 1, 8, 8) and made.x.isfinite().all() and made.nfe == 4
    assert torch.equal(made.cond["y"], torch.full((3,), 10))  # no class
    again = model.restore(Y[1:], "pool", spec, noise=noise, seed=2, batch_size=1)
    assert again.x.shape == (2, 1, 8, 8)
    alike = model.restore(Y, "pool", spec, noise=noise, seed=2, batch_size=2)
    torch.testing.assert_close(alike.x, made.x, rtol=1e-4, atol=1e-4)


def test_samples_of_one_measurement_differ_and_agree_with_it(model):
    made = model.restore(Y, {"name": "pool", "factor": 2}, {"name": "ddnm", "steps": 4}, each=2, cond=[1, 2, 3])
    assert made.x.shape == (6, 1, 8, 8) and made.cond["y"].tolist() == [1, 1, 2, 2, 3, 3]
    pooled = torch.nn.functional.avg_pool2d(made.x, 2)
    torch.testing.assert_close(pooled, Y.repeat_interleave(2, 0), rtol=0, atol=1e-5)
    assert (made.x[0] - made.x[1]).abs().max() > 0.1
    guided = model.restore(
        Y, "pool", {"name": "pigdm", "steps": 4}, noise=0.1, cond=1, guide={"name": "cfg", "scale": 3}
    )
    assert guided.nfe == 8
    again = {"name": "repaint", "steps": 4, "jump": 2, "repeats": 3}  # 4 steps, and twice the 2 before the last
    loops = model.restore(Y, "pool", {"name": "d_flow", "steps": 1, "iterations": 2})
    assert loops.x.isfinite().all() and loops.nfe >= 2 * 4  # midpoint, and a loop before, in and after the iterations
    assert model.restore(Y, "pool", again, cond=1, guide={"name": "cfg", "scale": 3}).nfe == 2 * (4 + 2 * 2)


@pytest.mark.parametrize("method", [{"name": "volume", "steps": 3}, {"name": "red_psm", "rounds": 1, "nodes": 2}])
def test_rows_that_are_one_sample_are_restored_together(model, method):
    whole = model.restore(Y, "pool", method, seed=2)
    assert whole.x.shape == (3, 1, 8, 8) and whole.x.isfinite().all()
    assert torch.equal(model.restore(Y, "pool", method, seed=2, batch_size=2).x, whole.x)
    with pytest.raises(UserError, match="are one sample, so each is 1, not 2"):
        model.restore(Y, "pool", method, each=2)
    with pytest.raises(
        UserError, match=f"the method {method['name']} takes no noise = 0.1: leave it out; its fields are "
    ):
        model.restore(Y, "pool", method, noise=0.1)


def test_what_does_not_fit_is_one_line(model):
    for arguments, said in (
        ((Y[:, :, :2], "pool"), r"restore: y is \[3, 1, 2, 4\]; this operator measures \[n, 1, 4, 4\]"),
        ((Y, "pole"), "unknown 'pole'|did you mean|Did you mean"),
        ((Y, {"name": "pool", "factor": 3}), "factor = 3 does not divide"),
        ((Y, "pool", "pigmd"), "Did you mean 'pigdm'"),
        ((Y, "pool", "ddnm"), None),
    ):
        if said is None:
            with pytest.raises(UserError, match="takes measurements without noise"):
                model.restore(*arguments, noise=0.1)
            continue
        with pytest.raises(UserError, match=said) as error:
            model.restore(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("degraded", ["by the data", "by the objective"])
def test_previews_show_degraded_pictures_samples_deviations_and_truth(degraded, tmp_path):
    objective = Restoration() if degraded == "by the data" else Restoration(operator=Pool(2), noise=0.1)
    data = Degraded(Digits(), Pool(2), noise=0.1) if degraded == "by the data" else Digits()
    run = Run(
        model=Beside(inner=UNET),
        data=data,
        objective=objective,
        path=Shift(),
        parameterisation="x0",
        sampler=Sampler("euler", steps=2),
    )
    held_out = data.open("test")
    file = preview(run, run.model.build().eval(), held_out, tmp_path / "step", torch.device("cpu"))
    sheet = np.asarray(Image.open(file))  # of six columns; a pixel is 4 x 4, and there is a gap of one
    cells = [sheet[:32:4, 33 * i : 33 * i + 32 : 4] for i in range(6)]
    truth, low = (to_uint8(x)[0].numpy() for x in (held_out[0]["x"], avg_pool2d(held_out[0]["x"], 2)))
    assert sheet.shape[1] == 6 * 33 - 1
    assert np.array_equal(cells[5], truth) and np.array_equal(cells[1], cells[2])
    assert 3 < np.abs(cells[0][::2, ::2].astype(float) - low).mean() < 20  # of deviation 0.1, 13 of 255
    assert cells[4].max() == 0  # all samples are alike: the network adds nothing yet


def test_rows_of_pictures_beside_each_other():
    samples = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    rows, words = side_by_side(samples, torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 4, 4))
    assert words == ("degraded", "sample 1", "sample 2", "deviation, 0.25 of the range being white", "truth")
    torch.testing.assert_close(rows[0, :, 0, 3, 1], torch.tensor([1, 0, 0.5, 4 * 0.125**0.5 - 1, -1]))
    rows, words = side_by_side(samples[:, :1])
    assert rows.shape == (1, 1, 3, 4, 4) and words == ("sample",)
