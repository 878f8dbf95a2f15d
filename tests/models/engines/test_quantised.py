"""Engines in eight bits: which layers they round, how far they say they are, and what they refuse."""

import copy
import sys

import pytest
import torch

from gen.config.errors import MissingDependency, UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.tap import FeatureRecorder
from gen.models.engines.lib import quantised
from gen.pipeline import Pipeline
from gen.training.low_precision import block_linears, float8_obstacle
from gen.training.run import Sampler
from tests.models.test_families import FAMILIES, digits, inputs, random_net

WITHOUT = {"cooperative", "edm2", "mlp", "song_unet", "unet"}  # convolutions, or layers with a formula of their own
LARGEST = {"int8": 0.01, "int8_weights": 0.006}  # of random networks, relative


def prepared(engine, net, **given):
    return build("models.engines", {"name": engine, "dtype": "float32", **given}).prepare(net)


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "int8") for name in FAMILIES), ("dit", "int8_weights"), ("energy", "int8_weights")]
)
@torch.no_grad()
def test_every_family_is_quantised_or_refused(name, engine):
    net = random_net(digits(name), dtype=torch.float32)
    if name in WITHOUT or (name, engine) == ("energy", "int8"):
        with pytest.raises(UserError, match=r"no linear layers in its blocks|activations: they have no gradient"):
            prepared(engine, net)
        return
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared(engine, net)
    out, exact = made(x, t, cond), net(x, t, cond)
    drift = float((out - exact).norm() / exact.norm())
    assert 0 < drift < LARGEST[engine] and made.drifts == [pytest.approx(drift, rel=1e-4)]
    assert made.about == f"{engine} (as asked), float32; {drift:.2g} from plain, the most of 1 evaluations"
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    layers = block_linears(net)
    assert all(hasattr(made.inner.get_submodule(layer).weight, "qdata") for layer in layers)
    left = [layer for layer, module in made.inner.named_modules() if hasattr(getattr(module, "weight", None), "qdata")]
    assert len(left) == len(layers)
    state = made.state_dict()  # as a fingerprint of samples reads it
    assert {type(value) for value in state.values()} <= {torch.Tensor, torch.nn.Parameter}
    assert sum(value.dtype == torch.int8 and name.endswith("weight.qdata") for name, value in state.items()) == len(
        left
    )


def test_layers_of_blocks_are_those_that_see_tokens():
    net = digits("dit").build()
    names = {f"blocks.{i}.{part}" for i in range(4) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert set(block_linears(net)) == names
    odd = torch.nn.ModuleList([torch.nn.Linear(32, 24), torch.nn.Linear(32, 32)])
    assert list(block_linears(torch.nn.ModuleDict({"layers": odd, "head": torch.nn.Linear(32, 32)}))) == ["layers.1"]


@torch.no_grad()
def test_a_loop_is_compared_at_evaluations_1_2_4_and_the_copy_goes():
    net = random_net(digits("dit"), dtype=torch.float32)
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=5))
    fast = pipeline.prepared({"name": "int8", "dtype": "float32", "compared": 3})
    made = fast.denoiser.net
    cached = fast.sample(4, cache={"name": "taylorseer_lite", "interval": 2}, steps=3)
    assert len(made.drifts) == 2 and made.plain is not None and max(made.drifts) < 0.01  # without the cache's error
    result = fast.sample(4)
    assert len(made.drifts) == 3 and made.plain is None and fast.sample(4).engine == result.engine
    assert "from plain, the most of 3 evaluations" in result.engine and cached.engine != result.engine
    plain = pipeline.sample(4)
    assert 0 < float((result.x - plain.x).norm() / plain.x.norm()) < 0.02 and result.nfe == plain.nfe
    silent = pipeline.prepared({"name": "int8", "dtype": "float32", "compared": 0})
    assert silent.sample(4).engine == "int8 (as asked), float32" and torch.equal(silent.sample(4).x, result.x)


@pytest.mark.parametrize("engine", LARGEST)
@torch.no_grad()
def test_taps_and_copies(engine):
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    made, tap = prepared(engine, net), FeatureRecorder()
    out = made(x, t, cond)
    torch.testing.assert_close(made(x, t, cond, tap=tap), out, rtol=1e-2, atol=1e-2)
    assert "blocks.3.mlp" in tap.features
    assert torch.equal(copy.deepcopy(made)(x, t, cond), out)


def test_gradients_of_x_are_the_networks_or_refused():
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    x.requires_grad_()
    made = prepared("int8_weights", net)
    ours, exact = (torch.autograd.grad(f(x, t, cond).square().sum(), x)[0] for f in (made, net))
    assert float((ours - exact).norm() / exact.norm()) < 0.02
    with pytest.raises(UserError, match=r"'int8' rounds activations: they have no gradient, which this guide"):
        prepared("int8", net)(x, t, cond)


@torch.no_grad()
def test_float8_on_a_gpu_that_has_it(monkeypatch):
    net = random_net(digits("dit"), dtype=torch.float32)
    with pytest.raises(UserError, match=r"engine .float8.: products in float8 need a GPU .* device is cpu; take int8"):
        prepared("float8", net)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert float8_obstacle("cuda").endswith("this one has 8.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert float8_obstacle("cuda:1") is None
    # PyTorch multiplies float8 on a CPU too, slowly; torchao would not begin.
    library = quantised.torchao("quantization.quant_api")
    monkeypatch.setattr(library, "is_sm_at_least_89", lambda: True)
    monkeypatch.setattr(library, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr("gen.models.engines.float8.float8_obstacle", lambda device: None)
    x, t, cond = inputs(net, dtype=torch.float32)
    for dtype in ("float32", "bfloat16"):
        made = prepared("float8", net, dtype=dtype)
        made(x, t, cond)
        assert 0.001 < made.drifts[0] < 0.05


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependency, match=r"eight bits need torchao .*pip install 'gen-diffusion\[quantized\]'"):
        prepared("int8", digits("dit").build())
