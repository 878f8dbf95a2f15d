"""A user's network in 34 lines trains, samples, is evaluated and runs under caches and engines."""

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.diffusion.net import members
from gen.models.dit import DiT
from gen.models.energy import Energy
from gen.models.engines.auto import Measured
from gen.models.engines.lib.prepared import Prepared
from gen.training.recipes.digits import digits
from tests.contracts.my_model import MyModel, MyNet

NAME = "tests.contracts.my_model:MyModel"
SMALL = {"model": NAME, "model.width": 8, "steps": 4, "batch_size": 8, "sample_every": 0, "validate_every": 0}
NONE = {"save_every": 2, "log_every": 1, "ema": []}


class HalfNet(MyNet):
    """The same, which says that it computes in bfloat16 too."""

    compute_dtypes = (torch.bfloat16,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("contract") / "run"
    gen.train(override(digits(), SMALL | NONE), out, quiet=True)
    return out


def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, 8, 8, generator=g), torch.rand(3, generator=g), {"y": torch.tensor([0, 9, 10])}


def test_it_trains_samples_and_is_evaluated(folder):
    pipeline = gen.load(folder, allow=("tests",))
    assert isinstance(pipeline.denoiser.net, MyNet) and pipeline.denoiser.net.spec == MyModel(width=8)
    out = pipeline.sample(4, solver="heun", steps=2, guide={"name": "cfg", "scale": 2.0}, seed=0)
    assert out.x.shape == (4, 1, 8, 8) and out.x.isfinite().all()
    record = gen.evaluate(pipeline, n=20, steps=1, batch_size=20, seconds=0.01, timed=2, metrics=["kid"])
    assert record.metrics


@pytest.mark.parametrize("cache", ["taylorseer", "teacache"])
def test_a_cache_refuses_a_network_without_sites(folder, cache):
    with pytest.raises(UserError, match="the network calls no tap, so a cache can save nothing"):
        gen.load(folder, allow=("tests",)).sample(2, cache=cache, steps=4)


@pytest.mark.parametrize("engine", ["auto", "fused"])
@torch.no_grad()
def test_engines_take_it_in_the_best_dtype_that_it_names(folder, engine, monkeypatch):
    monkeypatch.setattr("gen.models.engines.lib.prepared._fast_dtype", lambda device: (torch.bfloat16, "fast here"))
    pipeline = gen.load(folder, allow=("tests",))
    fast, (x, t, cond) = pipeline.prepared(engine), inputs()
    net, exact = fast.denoiser.net, pipeline.denoiser.net(x, t, cond)
    assert isinstance(net, Prepared | Measured) and net.about.endswith(
        "(MyNet names no other dtype in compute_dtypes), float32"
    )
    torch.testing.assert_close(net(x, t, cond), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.sample(3, steps=3).x, pipeline.sample(3, steps=3).x, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="dtype = bfloat16; MyNet computes in float32: to allow others, name them in"):
        pipeline.prepared({"name": engine, "dtype": "bfloat16"})
    half = HalfNet(pipeline.denoiser.net.spec)
    half.load_state_dict(pipeline.denoiser.net.state_dict())
    prepared = build("models.engines", engine).prepare(half)
    prepared = list(prepared.tried.values())[1] if engine == "auto" else prepared
    out = prepared(x, t, cond)
    assert prepared.about.endswith("(fast here), bfloat16") and out.dtype == x.dtype
    assert 0 < (out - exact).norm() / exact.norm() < 0.05


def test_its_graphs_may_have_breaks_but_those_of_gen_may_not(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: asked.append(options["fullgraph"]) or net)
    for net in (MyModel().build(), DiT.preset("digits", depth=1).build()):
        prepared = build("models.engines", {"name": "compiled", "dtype": "float32"}).prepare(net)
        torch.testing.assert_close(prepared(*inputs()), net(*inputs()), rtol=1e-5, atol=1e-5)
    assert not asked[0] and len(asked) == 4 and all(asked[1:])  # of ours, the parts of its block too
    asked.clear()
    build("models.engines", "compiled").prepare(Energy(DiT.preset("digits", depth=1)).build())
    assert not any(asked)


def test_optional_members_have_their_defaults():
    found = members(MyModel().build())
    assert found.state_shape == (1, 8, 8) and found.lr_scales() == {} and found.about == ""
    assert found.logvar is None and found.modulation_table is None and found.compute_dtypes == ()
