"""Every engine over every family: the network it prepares is the network, within its dtype's rounding."""

import copy
import functools
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import FeatureRecorder
from gen.eval.provenance import sampler_spec
from gen.kernels.linear import unpackable
from gen.models.engines.auto import Measured, in_turns
from gen.models.engines.compiled import Compiled, _Replayed
from gen.models.engines.lib.prepared import choose_dtype
from gen.models.layers.packed import PackedLinear
from gen.models.text import Text
from gen.pipeline import Pipeline
from gen.samplers.solvers.euler import Euler
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.training.run import Sampler
from tests.models.test_families import FAMILIES, digits, inputs, random_net

PACKABLE = unpackable(torch.empty(1, 1)) is None
EAGER = ["fused", "packed"] if PACKABLE else ["fused"]
TABLED = ["dit", "lightning_dit", "lightnet", "reg", "ssm"]


def prepared(engine, net, dtype="float32"):
    return build("models.engines", {"name": engine, "dtype": dtype}).prepare(net)


def rounding(out, exact):
    return float((out.double() - exact.double()).square().mean().sqrt() / exact.double().std())


def test_there_are_no_other_engines():
    assert names("models.engines") == [
        "auto", "branches", "compiled", "float8", "fused", "int8", "int8_weights", "packed", "patches", "pipefusion",
        "sequence",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_same_network_in_float32(name, engine):
    net = random_net(digits(name), dtype=torch.float32)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared(engine, net)
    assert rounding(made(x, t, cond), net.double()(x.double(), t.double(), cond)) < 3e-6
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
    seen, theirs = FeatureRecorder(), FeatureRecorder()
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
    table = made.modulation_table(times, cond)
    for i, t in enumerate(times):
        here = table(i, cond)
        torch.testing.assert_close(made(x, t.expand(3), here), made(x, t.expand(3), cond), rtol=1e-4, atol=1e-5)
        null = made.null(cond)
        torch.testing.assert_close(
            made(x, t.expand(3), table(i, null)), made(x, t.expand(3), null), rtol=1e-4, atol=1e-5
        )
    assert made.modulation_table(times, cond, max_bytes=1000) is None
    assert made.modulation_table(times, {**cond, "text": x}) is None


def sampled(net, engine=None, n=4, **options):
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=4))
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


@pytest.mark.parametrize("guide", [None, {"name": "cfg"}, {"name": "cfg", "scale": 2.0, "batched": True}])
@pytest.mark.parametrize("cache", [None, {"name": "taylorseer_lite", "interval": 2}])
@torch.no_grad()
def test_a_loop_computes_its_modulations_once(guide, cache):
    net = random_net(digits("dit"), dtype=torch.float32)
    engine = build("models.engines", {"name": "fused", "dtype": "float32"})
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=4)).prepared(engine)
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
    net = digits("dit").build()
    monkeypatch.setattr("gen.models.engines.lib.prepared.unpackable", lambda weight: None)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_dtype("auto", "cpu", net) == (torch.float32, "the processor has no fast bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_dtype("auto", "cpu", net) == (torch.bfloat16, "AVX512-BF16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_dtype("auto", "cpu", net) == (torch.bfloat16, "AMX")
    assert choose_dtype("float32", "cpu", net)[0] == torch.float32
    monkeypatch.setattr("gen.models.engines.lib.prepared.unpackable", lambda weight: "no oneDNN")
    assert choose_dtype("auto", "cpu", net) == (torch.float32, "no oneDNN")


def test_auto_says_what_it_chose():
    made = build("models.engines", "auto").prepare(digits("dit").build())
    assert isinstance(made, Measured)
    assert made.about.startswith(f"auto, to be measured: plain or {'packed' if PACKABLE else 'fused'}")


def test_auto_takes_the_fastest_of_each_batch_size_once_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net, measured = digits("dit").build().eval(), []
    made = build("models.engines", {"name": "auto", "dtype": "float32"}).prepare(net)
    plain, fast = made.tried

    def clock(calls, seconds):
        rows = len(calls[plain]())
        measured.append(rows)
        assert [call().shape for call in calls.values()] == [(rows, 1, 8, 8)] * 2
        return {plain: 1.0, fast: 0.98 if rows < 5 else 0.5}

    monkeypatch.setattr("gen.models.engines.auto.in_turns", clock)
    pipeline = Pipeline(Denoiser(made, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=2))
    alone = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=2))
    few, many = pipeline.sample(3, steps=2), pipeline.sample(5, steps=2)
    assert measured == [3, 5]
    assert torch.equal(few.x, alone.sample(3, steps=2).x)  # within 15 % the plain network stays
    torch.testing.assert_close(many.x, alone.sample(5, steps=2).x, rtol=1e-4, atol=1e-4)
    assert many.engine == f"batch 4: plain; batch 8: {fast}"
    pipeline.sample(4, steps=2), pipeline.sample(8, steps=2, cache={"name": "fbcache", "threshold": 0.1})
    assert measured == [3, 5]
    again = build("models.engines", {"name": "auto", "dtype": "float32"}).prepare(net)  # as another process does
    later = replace(pipeline, denoiser=replace(pipeline.denoiser, net=again))
    assert later.sample(3, steps=2).engine == "plain" and measured == [3, 5]
    assert torch.equal(later.sample(7, steps=2).x, pipeline.sample(7, steps=2).x) and measured == [3, 5]
    for file in (tmp_path / "gen" / "engines").iterdir():
        file.write_text(file.read_text()[:-20])
    later = replace(later, denoiser=replace(later.denoiser, net=Measured(made.tried, 0.0)))
    assert later.sample(3, steps=2).engine == "plain" and measured == [3, 5, 3]
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(__file__)))  # no folder: nothing is remembered
    later = replace(later, denoiser=replace(later.denoiser, net=Measured(made.tried, 0.0)))
    assert later.sample(5, steps=2).engine == fast and measured == [3, 5, 3, 5]
    assert in_turns({"a": lambda: measured.append("call")}, 0.0)["a"] >= 0
    assert measured.count("call") == 4


def test_auto_compiles_only_where_it_is_asked_to_and_can(monkeypatch):
    engine = build("models.engines", {"name": "auto", "dtype": "float32", "compile": True})
    monkeypatch.setattr("gen.models.engines.auto.compiler_obstacle", lambda: None)
    assert list(engine.prepare(digits("dit").build()).tried)[-1] == "compiled (as asked), float32"
    monkeypatch.setattr("gen.models.engines.auto.compiler_obstacle", lambda: "there is none")
    with pytest.raises(UserError, match="auto: compile = true: there is none"):
        engine.prepare(digits("dit").build())


@pytest.mark.skipif(not PACKABLE, reason="no oneDNN")
def test_packed_weights_do_not_move():
    made = prepared("packed", digits("dit").build())
    with pytest.raises(UserError, match="packed weights stay on the device and in the dtype"):
        made.double()


@pytest.mark.skipif(not PACKABLE, reason="no oneDNN")
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_text_is_written_the_same(tied):
    torch.manual_seed(0)
    net = (
        Text(vocab_size=40, mask_token_id=39, eos_token_ids=(38,), width=32, depth=2, heads=2, length=24, tied=tied)
        .build()
        .eval()
    )
    plain = TextPipeline(net, None, Decoding(), 24)
    fast = plain.prepared({"name": "packed", "dtype": "float32"})
    tokens = torch.randint(39, (2, 24))
    torch.testing.assert_close(fast.net(tokens), net(tokens), rtol=1e-4, atol=1e-5)
    assert not [m for m in fast.net.modules() if type(m) is torch.nn.Linear]
    assert fast.net.about == "packed (as asked), float32"
    assert fast.generate([[1, 2, 3]], 8).texts == plain.generate([[1, 2, 3]], 8).texts
    with pytest.raises(UserError, match="'fused' is for networks of images; for text there is 'packed', on a CPU"):
        plain.prepared("fused")
    with pytest.raises(UserError, match="is prepared already"):
        fast.prepared("packed")
    with pytest.raises(UserError, match=r"on meta; oneDNN's are on the CPU; for text there is no other engine"):
        replace(plain, device="meta").prepared("packed")


@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.parametrize("name", TABLED)
def test_a_model_without_classes_samples_the_same(name, engine):
    net = random_net(digits(name, classes=0), dtype=torch.float32)
    plain = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 0, Sampler("heun", steps=3))
    fast = plain.prepared({"name": engine, "dtype": "float32"})
    for cond in (None, {"y": torch.tensor([1, 2, 3])}):  # which it does not look at
        torch.testing.assert_close(fast.sample(3, cond).x, plain.sample(3, cond).x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("y", [None, torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)])
def test_labels_that_are_none_are_refused_as_by_the_network(y):
    net = random_net(digits("dit"), dtype=torch.float32)
    plain = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=2))
    cond = {} if y is None else {"y": y}
    for pipeline in (plain, plain.prepared({"name": "fused", "dtype": "float32"})):
        with pytest.raises(UserError, match=r"needs cond\['y'\]; given: nothing|cond\['y'\] is torch\.\w+ \[2"):
            pipeline.sample(2, cond)
        with pytest.raises(UserError, match=r"needs cond\['y'\]|cond\['y'\] is torch"):
            pipeline.denoiser.net(torch.zeros(2, 1, 8, 8), torch.ones(2), cond)


@pytest.mark.parametrize("engine", EAGER)
@torch.no_grad()
def test_copies_and_pickles_are_the_same_network(engine):
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared(engine, net)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(again(x, t, cond), made(x, t, cond), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", EAGER)
def test_gradients_of_x_are_the_networks(engine):
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    x.requires_grad_()
    ours, exact = (torch.autograd.grad(f(x, t, cond).square().sum(), x)[0] for f in (prepared(engine, net), net))
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside dynamo
@torch.no_grad()
def test_more_shapes_are_compiled_than_pytorch_has_patience_for(monkeypatch):
    compiled = torch.compile

    def quick(model, *, options=None, **given):
        return compiled(model, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", functools.wraps(compiled)(quick))
    net = random_net(digits("dit"), dtype=torch.float32)
    made = prepared("compiled", net)
    for n in range(1, 10):
        x, t, cond = inputs(net, n, dtype=torch.float32)
        torch.testing.assert_close(made(x, t, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()  # or other tests' patience ends


@dataclass(frozen=True)
class Own:
    """An engine of the user's own, whose networks say nothing about themselves."""

    def prepare(self, net, device="cpu"):
        return net


def test_an_engine_of_ones_own_is_named_in_the_record():
    pipeline = Pipeline(Denoiser(digits("dit").build(), Flow(), Velocity()), (1, 8, 8), 10).prepared(Own())
    assert sampler_spec(pipeline, {})["engine"] == {"name": f"{__name__}:Own"}
    assert pipeline.sample(1, steps=1).engine == ""


def test_a_rehearsal_has_as_many_dimensions_as_x():
    @dataclass(frozen=True)
    class Centred(Euler):
        def step(self, f, path, x, t, s, state, noise):
            assert x.mean((2, 3)).shape == x.shape[:2]
            return super().step(f, path, x, t, s, state, noise)

    net = random_net(digits("dit"), dtype=torch.float32)
    assert sampled(net, "fused", solver=Centred()).nfe == 4


def test_refusals():
    pipeline = Pipeline(Denoiser(digits("dit").build(), Flow(), Velocity()), (1, 8, 8), 10)
    with pytest.raises(UserError, match=r"unknown name 'pact' in models\.engines"):
        pipeline.prepared("pact")
    with pytest.raises(UserError, match="is prepared already"):
        pipeline.prepared("fused").prepared("fused")
    assert spec_of(build("models.engines", "packed")) == {"name": "packed", "dtype": "auto"}
    for none in (5, None, [1], digits("dit")):
        with pytest.raises(UserError, match=r"allowed: a name of gen\.models\.engines, a spec, or a dataclass"):
            pipeline.prepared(none)
    with pytest.raises(UserError, match="shapes = 0; it must be in"):
        build("models.engines", {"name": "compiled", "shapes": 0})
    for none in ([1, 2], torch.tensor(1)):
        with pytest.raises(UserError, match=r"cond\['y'\] = .*; it must be a tensor with 2 rows"):
            pipeline.sample(2, {"y": none})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside inductor
@torch.no_grad()
def test_what_a_graph_returns_is_not_written_over():
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    made, place = prepared("fused", net), torch.empty_like(x)
    made.compiled = _Replayed(lambda *args, **kwargs: place.copy_(made.inner(*args, **kwargs)))
    first = made(x, t, cond)
    second = made(x + 1, t, cond)
    assert not torch.equal(first, second) and torch.equal(second, place)
    torch.testing.assert_close(first, net(x, t, cond), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside inductor
@pytest.mark.parametrize("cache", ["taylorseer", "taylorseer_lite"])
@torch.no_grad()
def test_what_a_cache_keeps_lies_in_no_graph(cache, monkeypatch):
    """A graph's outputs lie where its next replay writes; a stand-in for torch.compile does that on a CPU."""
    graphs, parts = [], []

    def replayed(model, **how):
        graphs.append(how)
        outputs = {}

        def replay(x, t, cond, *, s=None):
            out = model(x, t, cond, s=s)
            return outputs.setdefault(out.shape, torch.empty_like(out)).copy_(out)

        return replay

    monkeypatch.setattr(torch, "compile", functools.wraps(torch.compile)(replayed))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: parts.append(how))
    net = random_net(digits("dit"), dtype=torch.float32)
    made = prepared("fused", net)
    Compiled(dtype="float32").compile(made, "cuda")
    assert graphs[0]["options"] == {"triton.cudagraphs": True} and len(parts) == 2 * net.spec.depth
    assert not any({"options", "mode"} & how.keys() for how in parts)  # no graphs where a tap stands between
    options = {"cache": build("samplers.caches", cache), "guide": {"name": "cfg", "scale": 2.0}, "steps": 6}
    pipeline = Pipeline(Denoiser(made, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=6))
    plain = sampled(net, **options)
    for _ in range(2):
        torch.testing.assert_close(pipeline.sample(4, **options).x, plain.x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pipeline.sample(4, steps=6).x, sampled(net, steps=6).x, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside inductor
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
@torch.no_grad()
def test_compiled_graphs_are_whole_with_and_without_a_cache():
    net = random_net(digits("dit"), dtype=torch.float32)
    x, t, cond = inputs(net, dtype=torch.float32)
    made = prepared("compiled", net)
    torch.testing.assert_close(made(x, t, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(x, t, cond, tap=FeatureRecorder()), net(x, t, cond), rtol=1e-4, atol=1e-5)
    f = Denoiser(made, Flow(), Velocity())
    cache = build("samplers.caches", {"name": "taylorseer", "interval": 2})
    noise, grid = Noise(tuple(range(3))), torch.linspace(1, 0, 7, dtype=torch.float64)
    ours = integrate(f, noise.normal("start", (1, 8, 8)).float(), grid, Euler(), cond=cond, tap=cache.start(6))
    plain = Denoiser(net, Flow(), Velocity())
    theirs = integrate(plain, noise.normal("start", (1, 8, 8)).float(), grid, Euler(), cond=cond, tap=cache.start(6))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
