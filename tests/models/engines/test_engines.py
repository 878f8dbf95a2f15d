"""Every engine over every family: the network it prepares is the network, within its dtype's rounding."""

import shutil

import pytest
import torch

from gen.decoding import Decoding
from gen.denoise import Denoiser
from gen.errors import UserError
from gen.kernels.linear import unpackable
from gen.models.engines._prepared import Prepared, chosen
from gen.models.layers.packed import PackedLinear
from gen.models.text import Text
from gen.noise import Noise
from gen.param import Flow as FlowParam
from gen.path import Flow
from gen.pipeline import Pipeline
from gen.run import Sampler
from gen.sample import integrate
from gen.samplers.solvers.euler import Euler
from gen.spec import build, names, spec_of
from gen.tap import Record
from gen.text import TextPipeline
from tests.models.test_families import FAMILIES, digits, inputs, random_net

PACKABLE = unpackable(torch.empty(1, 1)) is None
EAGER = ["fused", "packed"] if PACKABLE else ["fused"]
TABLED = ["dit", "lightning_dit", "lightnet", "reg", "ssm"]


def prepared(engine, net, dtype="float32"):
    return build("models.engines", {"name": engine, "dtype": dtype}).prepare(net)


def rounding(out, exact):
    return float((out.double() - exact.double()).square().mean().sqrt() / exact.double().std())


def test_there_are_no_other_engines():
    assert names("models.engines") == ["auto", "compiled", "fused", "packed", "sequence"]


@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_same_network_in_float32(name, engine):
    net = random_net(digits(name), dtype=torch.float32)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared(engine, net)
    assert rounding(made(x, t, cond), net.double()(x.double(), t.double(), cond)) < 2e-6
    assert all(torch.equal(value, before[key].to(value)) for key, value in net.state_dict().items())
    assert made.null(cond).keys() == net.null(cond).keys()


@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of autocast
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_bfloat16_is_as_near_as_autocast(name, engine):
    if unpackable(torch.empty(1, 1, dtype=torch.bfloat16)) is not None and engine == "packed":
        pytest.skip("no bfloat16 in oneDNN here")
    net = random_net(digits(name), dtype=torch.float32)
    x, t, cond = inputs(net, n=16, dtype=torch.float32)
    exact = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        usual = net(x, t, cond)
    out = prepared(engine, net, "bfloat16")(x, t, cond)
    assert out.dtype == torch.float32
    assert rounding(out, exact) < 3 * rounding(usual, exact)


@pytest.mark.parametrize("engine", EAGER)
@torch.no_grad()
def test_taps_see_the_same_sites(engine):
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    seen, theirs = Record(), Record()
    made = prepared(engine, net)
    torch.testing.assert_close(made(x, t, cond, tap=seen), made(x, t, cond), rtol=1e-4, atol=1e-5)
    net(x, t, cond, tap=theirs)
    assert list(seen.features) == list(theirs.features)
    for site, feature in theirs.features.items():
        torch.testing.assert_close(seen.features[site], feature, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not PACKABLE, reason="no oneDNN")
def test_every_plain_linear_layer_is_packed():
    made = prepared("packed", random_net(digits("dit"), dtype=torch.float32))
    left = [name for name, module in made.named_modules() if type(module) is torch.nn.Linear]
    assert not left
    fused = [module.activation for module in made.modules() if isinstance(module, PackedLinear)]
    assert fused.count("gelu_tanh") == made.inner.spec.depth


@pytest.mark.parametrize("name", TABLED)
@torch.no_grad()
def test_modulations_in_advance_are_those_of_the_moment(name):
    net = random_net(digits(name), dtype=torch.float32)
    x, _, cond = inputs(net, dtype=torch.float32)
    made, times = prepared("fused", net), torch.tensor([0.9, 0.5, 0.1])
    table = made.table(times, cond)
    for i, t in enumerate(times):
        here = table(i, cond)
        torch.testing.assert_close(made(x, t.expand(3), here), made(x, t.expand(3), cond), rtol=1e-4, atol=1e-5)
        null = made.null(cond)
        torch.testing.assert_close(
            made(x, t.expand(3), table(i, null)), made(x, t.expand(3), null), rtol=1e-4, atol=1e-5
        )
    assert made.table(times, cond, most=1000) is None
    assert made.table(times, {**cond, "text": x}) is None


def sampled(net, engine=None, n=4, **options):
    pipeline = Pipeline(Denoiser(net, Flow(), FlowParam()), (1, 8, 8), 10, Sampler("heun", steps=4))
    return (pipeline if engine is None else pipeline.prepared(engine)).sample(n, **options)


class Counting(torch.nn.Module):
    """What takes a product's place, and counts its rows."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    @property
    def product(self):
        return self.inner.product

    def forward(self, c):
        self.rows.append(len(c))
        return self.inner(c)


@pytest.mark.parametrize("guide", [None, {"name": "cfg"}, {"name": "cfg", "scale": 2.0, "together": True}])
@pytest.mark.parametrize("cache", [None, {"name": "taylorseer_lite", "interval": 2}])
@torch.no_grad()
def test_a_loop_computes_its_modulations_once(guide, cache):
    net = random_net(digits("dit"), dtype=torch.float32)
    engine = build("models.engines", {"name": "fused", "dtype": "float32"})
    pipeline = Pipeline(Denoiser(net, Flow(), FlowParam()), (1, 8, 8), 10, Sampler("heun", steps=4)).prepared(engine)
    made = pipeline.denoiser.net
    made.modulations = Counting(made.modulations)
    out = pipeline.sample(4, guide=guide, cache=cache, steps=6)
    assert made.modulations.rows == [6 * 5]  # Heun's 6 steps ask at 6 times above 0; 4 classes and none
    plain = sampled(net, n=4, guide=guide, cache=cache, steps=6)
    torch.testing.assert_close(out.x, plain.x, rtol=1e-3, atol=1e-4)
    assert out.nfe == plain.nfe and out.engine == "fused (as asked), float32" and plain.engine == ""


def test_times_that_nobody_foresaw_are_computed():
    net = random_net(digits("dit"), dtype=torch.float32)
    plain, fast = (sampled(net, engine, solver="adaptive") for engine in (None, {"name": "fused", "dtype": "float32"}))
    torch.testing.assert_close(fast.x, plain.x, rtol=1e-2, atol=1e-2)


def test_the_usual_dtype_is_what_the_processor_has(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert chosen("auto", "cpu") == (torch.float32, "the processor has no fast bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert chosen("auto", "cpu") == (torch.bfloat16, "AVX512-BF16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert chosen("auto", "cpu") == (torch.bfloat16, "AMX")
    assert chosen("float32", "cpu")[0] == torch.float32


def test_auto_says_what_it_chose():
    made = build("models.engines", "auto").prepare(digits("dit").build())
    assert isinstance(made, Prepared)
    assert made.about.startswith("packed" if PACKABLE else "fused")


@pytest.mark.skipif(not PACKABLE, reason="no oneDNN")
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_text_is_written_the_same(tied):
    torch.manual_seed(0)
    net = Text(vocab=40, mask=39, stops=(38,), width=32, depth=2, heads=2, length=24, tied=tied).build().eval()
    plain = TextPipeline(net, None, Decoding(), 24)
    fast = plain.prepared({"name": "packed", "dtype": "float32"})
    tokens = torch.randint(39, (2, 24))
    torch.testing.assert_close(fast.net(tokens), net(tokens), rtol=1e-4, atol=1e-5)
    assert not [m for m in fast.net.modules() if type(m) is torch.nn.Linear]
    assert fast.generate([[1, 2, 3]], 8).texts == plain.generate([[1, 2, 3]], 8).texts
    with pytest.raises(UserError, match="the engine 'fused' is for networks of images; for text there is 'packed'"):
        plain.prepared("fused")
    with pytest.raises(UserError, match="is prepared already"):
        fast.prepared("packed")


def test_refusals():
    pipeline = Pipeline(Denoiser(digits("dit").build(), Flow(), FlowParam()), (1, 8, 8), 10)
    with pytest.raises(UserError, match=r"unknown name 'pact' in models\.engines"):
        pipeline.prepared("pact")
    with pytest.raises(UserError, match="is prepared already"):
        pipeline.prepared("fused").prepared("fused")
    assert spec_of(build("models.engines", "packed")) == {"name": "packed", "dtype": "auto"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside inductor
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@torch.no_grad()
def test_compiled_graphs_are_whole_with_and_without_a_cache():
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared("compiled", net)
    torch.testing.assert_close(made(x, t, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(x, t, cond, tap=Record()), net(x, t, cond), rtol=1e-4, atol=1e-5)
    f = Denoiser(made, Flow(), FlowParam())
    cache = build("samplers.caches", {"name": "taylorseer", "interval": 2})
    noise, grid = Noise(tuple(range(3))), torch.linspace(1, 0, 7, dtype=torch.float64)
    ours = integrate(f, noise.normal("start", (1, 8, 8)).float(), grid, Euler(), cond=cond, tap=cache.start(6))
    plain = Denoiser(net, Flow(), FlowParam())
    theirs = integrate(plain, noise.normal("start", (1, 8, 8)).float(), grid, Euler(), cond=cond, tap=cache.start(6))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
