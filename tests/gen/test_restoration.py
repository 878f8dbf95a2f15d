"""Pipeline.restore: any operator, method and model; what the samples have to do with the measurements."""

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import override
from gen.training.recipes.digits import digits
from gen.training.trainer import train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 3, "batch_size": 8}
    folder = tmp_path_factory.mktemp("restoration") / "run"
    train(override(digits(), changes | {"sample_every": 0, "validate_every": 0, "ema": ()}), folder, quiet=True)
    return gen.load(folder)


Y = torch.linspace(-1, 1, 3 * 16).reshape(3, 1, 4, 4)


OWN = {"repaint": {"repeats": 1}}  # of methods, beside steps
NOISELESS = {"ddnm", "sdedit", "repaint"}


@pytest.mark.parametrize("method", ["ddnm", "pigdm", "exact", "dps", "diffpir", "ddrm", "sdedit", "repaint"])
def test_every_method_restores_with_a_network(model, method):
    noise = None if method in NOISELESS else 0.1
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
    assert model.restore(Y, "pool", again, cond=1, guide={"name": "cfg", "scale": 3}).nfe == 2 * (4 + 2 * 2)


@pytest.mark.parametrize("method", [{"name": "volume", "steps": 3}, {"name": "red_psm", "rounds": 1, "nodes": 2}])
def test_rows_that_are_one_sample_are_restored_together(model, method):
    whole = model.restore(Y, "pool", method, seed=2)
    assert whole.x.shape == (3, 1, 8, 8) and whole.x.isfinite().all()
    assert torch.equal(model.restore(Y, "pool", method, seed=2, batch_size=2).x, whole.x)
    with pytest.raises(UserError, match="are one sample, so each is 1, not 2"):
        model.restore(Y, "pool", method, each=2)


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
