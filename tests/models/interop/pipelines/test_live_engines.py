"""Engines in live pipelines: equal to rounding, to the bit once they are removed, and beside what else is done."""

import accelerate
import pytest
import torch
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    CogVideoXLayerNormZero,
    RMSNorm,
)
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from torch import nn

import gen
from gen.config.errors import UserError
from gen.models.engines.fused import Fused
from gen.models.engines.packed import Packed
from gen.models.interop.pipelines.fast_modules import FUSED, PackedLayer
from gen.models.interop.pipelines.network_engine import NetworkEngine
from tests.models.interop.pipelines.test_live import attributes, every, networks, run
from tests.models.interop.pipelines.test_live_beside import add_lora, cast, hook_blocks, offload_groups, quantise
from tests.pipelines.tiny import FAMILIES, call, prompted, randomise, relative, tiny, with_text_encoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # EulerDiscrete
NORMED = ("cogvideox", "dit", "flux", "flux2", "hunyuan_video", "ltx", "lumina2", "qwen_image", "sd3", "z_image")


def kinds(engine):
    """Classes of the modules that an engine has computed."""
    return {type(module).__name__ for module, fast in engine.fast.items() if fast.used}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_equal_to_rounding_and_removed_to_the_bit(name):
    pipe = tiny(name)
    plain, before, scheduler = run(pipe, name), attributes(pipe), pipe.scheduler
    for engine in ("packed", "fused") if name in NORMED else ("packed",):
        with gen.accelerate(pipe, engine=engine) as live:
            assert relative(run(pipe, name), plain) < 2e-5
            for part in live.engines:
                found = kinds(part)
                assert "Linear" in found if engine == "packed" else found and found <= set(FUSED)
                assert "Conv2d" in found or engine == "fused" or "unet" not in pipe.components
            used = sum(fast.used for fast in live.engines[0].fast.values())
            assert f"{engine}: {used} of {len(live.engines[0].fast)} modules replaced (" in repr(live)
            live.enabled = False
            assert torch.equal(run(pipe, name), plain)
        assert attributes(pipe) == before and pipe.scheduler is scheduler
    assert torch.equal(run(pipe, name), plain)


@torch.no_grad()
def test_arguments_by_name_run_the_module_itself():
    net, x = nn.ModuleList([nn.Linear(16, 16), RMSNorm(16, 1e-6)]), torch.ones(8, 16)
    assert not PackedLayer(net[0]).fits(input=x)
    assert not FUSED["RMSNorm"](net[1]).fits(hidden_states=x)
    with NetworkEngine(net, Packed()):
        assert torch.equal(net[0](input=x), net[0].forward(input=x))
        assert net[1](hidden_states=x).shape == x.shape


@torch.no_grad()
def test_norms_in_fewer_passes_are_their_classes_in_float64():
    draw = torch.Generator().manual_seed(0)
    x, e, c = (torch.randn(2, n, 8, dtype=torch.float64, generator=draw) for n in (5, 3, 1))
    emb = c[:, 0]
    cases = [
        (AdaLayerNormContinuous(8, 8, elementwise_affine=True), (x, emb), {}),
        (AdaLayerNormContinuous(8, 8, elementwise_affine=False), (x, emb[:1]), {}),
        (AdaLayerNormZero(8, 4), (x, torch.tensor([3, 5]), torch.tensor([1, 2])), {"hidden_dtype": torch.float64}),
        (AdaLayerNormZero(8), (x,), {"emb": emb}),
        (AdaLayerNormZeroSingle(8), (x, emb), {}),
        (CogVideoXLayerNormZero(8, 8), (x, e, emb), {}),
        (Flux2SwiGLU(), (x,), {}),
    ]
    for module, args, kwargs in cases:
        module = randomise(module, 1).double()
        fast = FUSED[type(module).__name__](module)
        assert fast.fits(*args, **kwargs)
        outs = [f(*args, **kwargs) for f in (fast, module)]
        ours, theirs = ((out,) if isinstance(out, torch.Tensor) else out for out in outs)
        assert all(a.shape == b.shape and relative(a, b) < 1e-14 for a, b in zip(ours, theirs, strict=True))
    for weights in (True, False):
        module = randomise(RMSNorm(8, 1e-6, elementwise_affine=weights), 1)
        fast = FUSED["RMSNorm"](module)
        assert relative(fast(x.float()), module(x.float())) < 1e-6
        assert not fast.fits(x), "theirs rounds to float32 within"
    assert FUSED["RMSNorm"](RMSNorm(8, 1e-6, bias=True)) is None
    assert FUSED["RMSNorm"](nn.RMSNorm(8)) is None
    assert FUSED["AdaLayerNormContinuous"](AdaLayerNormContinuous(8, 8, norm_type="rms_norm")) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("change", [add_lora, offload_groups, hook_blocks], ids=lambda change: change.__name__)
@pytest.mark.parametrize("first", ["changed", "accelerated"])
def test_works_with(change, first):
    name = "flux"
    reference = tiny(name)
    change(reference.transformer)
    plain = run(reference, name)
    pipe = tiny(name)
    if first == "changed":
        change(pipe.transformer)
        run(pipe, name)
        before = attributes(pipe)
    live = gen.accelerate(pipe, engine="packed")
    run(pipe, name)
    if first == "accelerated":
        change(pipe.transformer)
    assert 0 < relative(run(pipe, name), plain) < 2e-5
    used = kinds(live.engines[0])
    assert {"Linear", "AdaLayerNormZero"} <= used and ("GELU" in used) == (change is not add_lora or first != "changed")
    live.remove()
    assert torch.equal(run(pipe, name), plain)
    if first == "changed":
        assert attributes(pipe) == before


@torch.no_grad()
def test_any_change_of_weights_is_seen():
    """Merging an adapter changes weights without a new version of the tensors."""
    memory = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for dtype, start in ((torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 3)):
        layer = nn.Linear(5, 7, dtype=dtype)
        layer.weight.data = memory.to(dtype)[start : start + 35].view(7, 5)
        x = memory[:40].view(8, 5).to(dtype)
        fast = PackedLayer(layer)
        for row, column in ((0, 0), (3, 2), (6, 4)):
            assert relative(fast(x), layer(x)) < 1e-2
            kept = fast.weight
            fast.refresh()
            assert fast.weight is kept
            version = layer.weight._version
            layer.weight.data[row, column] += 1
            assert layer.weight._version == version
            fast.refresh()
            assert fast.weight is None


def test_weights_that_change_are_packed_anew():
    name = "flux"
    pipe, reference = tiny(name), tiny(name)
    live = gen.accelerate(pipe, engine="packed")
    run(pipe, name)
    for net in (pipe.transformer, reference.transformer):
        add_lora(net)
        net.fuse_lora()
    assert relative(run(pipe, name), run(reference, name)) < 2e-5
    with torch.no_grad():
        for net in (pipe.transformer, reference.transformer):
            net.proj_out.weight.mul_(1.5)
    assert relative(run(pipe, name), run(reference, name)) < 2e-5
    live.remove()
    assert torch.equal(run(pipe, name), run(reference, name))


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_packed_is_left_or_refused():
    pipe = tiny("flux")
    quantise(pipe.transformer)
    plain, before = run(pipe, "flux"), attributes(pipe)
    with pytest.raises(
        UserError, match=r"packed: this FluxTransformer2DModel has none .* left: weights are \w+"
    ) as error:
        gen.accelerate(pipe, engine="packed")
    assert "\n" not in str(error.value)
    with gen.accelerate(pipe, engine="fused"):
        assert relative(run(pipe, "flux"), plain) < 2e-5
    assert torch.equal(run(pipe, "flux"), plain) and attributes(pipe) == before
    pipe = tiny("flux")
    cast(pipe.transformer)
    plain = run(pipe, "flux")
    with gen.accelerate(pipe, engine="packed") as live:
        assert relative(run(pipe, "flux"), plain) < 2e-5 and "left (" in live.engines[0].about
    double = tiny("sd3").transformer.double()
    with pytest.raises(UserError, match="float64"):
        NetworkEngine(double, Packed())
    NetworkEngine(double, Fused())


@pytest.mark.parametrize("name, engine, line", [
    ("pixart", "fused", "has none of what it looks for, AdaLayerNorm"),
    ("pixart", "auto", "prepares a copy"),
    ("pixart", {"name": "packed", "dtype": "bfloat16"}, "stays in its own"),
    ("pixart", {"name": "compiled", "autotune": True}, "leave the options out"),
    ("pixart", "pakced", "packed"),
])  # fmt: skip
def test_refusals(name, engine, line):
    pipe = tiny(name)
    before, scheduler = attributes(pipe), pipe.scheduler
    with pytest.raises(UserError, match=line):
        gen.accelerate(pipe, engine=engine)
    with pytest.raises(UserError, match="neither a cache nor an engine"):
        gen.accelerate(pipe, "none")
    assert attributes(pipe) == before and pipe.scheduler is scheduler


def test_beside_a_cache_another_engine_and_after_an_exception():
    name = "flux"
    pipe, cache = tiny(name), every(2, ("blocks.*.raw",))
    plain, before = run(pipe, name), attributes(pipe)
    with gen.accelerate(pipe, cache):
        cached = run(pipe, name)
    with gen.accelerate(pipe, cache, engine="packed") as live:
        for line in ({"engine": "packed"}, {"engine": "fused"}, {"cache": "fora"}):
            with pytest.raises(UserError, match="accelerated already"):
                gen.accelerate(pipe, **line)
        assert relative(run(pipe, name), cached) < 2e-5 and live.report.computed_share == 0.5
        assert "packed: " in live.summary() and "#" in live.summary()

        def fail(pipe, step, t, given):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(pipe, name, callback_on_step_end=fail)
        assert relative(run(pipe, name), cached) < 2e-5
    assert torch.equal(run(pipe, name), plain) and attributes(pipe) == before
    with pytest.raises(KeyboardInterrupt), gen.accelerate(pipe, engine="packed"):
        run(pipe, name, callback_on_step_end=fail)
    assert torch.equal(run(pipe, name), plain) and attributes(pipe) == before


def test_other_sizes_gradients_and_drift():
    name = "sd15"
    pipe, other = tiny(name), tiny(name)
    with gen.accelerate(pipe, engine="packed") as live:
        for change in ({}, {"height": 32, "num_inference_steps": 2}):
            assert relative(run(pipe, name, **change), run(other, name, **change)) < 2e-5
        given = {key: value for key, value in call(name).items() if key not in ("output_type", "generator")}
        drift = live.drift(**given)
        assert 0 < drift.latents < 2e-5 and drift.psnr > 60 and drift.loop is None and "PSNR" in repr(drift)
        with pytest.raises(UserError, match="no cache"):
            live.picture()
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        grads = []
        for net in (pipe.unet, other.unet):
            out = net(x, torch.tensor(5), torch.ones(1, 3, 8))[0]
            grads.append(torch.autograd.grad(out.sum(), x)[0])
        assert torch.equal(*grads), "a gradient is the module's own"


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_theirs():
    net, x = tiny("dit").transformer, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"timestep": torch.tensor([5, 500]), "class_labels": torch.tensor([1, 2]), "return_dict": False}
    exact = net(x, **given)[0]
    net.to(torch.bfloat16)
    plain = net(x.bfloat16(), **given)[0].float()
    with NetworkEngine(net, Packed()) as engine:
        ours = net(x.bfloat16(), **given)[0].float()
    assert "GELU" in kinds(engine) and "Conv2d" in kinds(engine)
    assert 0 < relative(ours, exact) < 2 * relative(plain, exact)


def test_prompts_are_sampled_under_an_engine():
    name = "sd15"
    pipe = with_text_encoder(name)
    model = gen.load_diffusers(pipe, **{k: v for k, v in prompted(name).items() if k in ("height", "width")})
    before = attributes(pipe)
    plain = model.sample("a red fox", steps=2, decode=False)
    assert plain.engine == ""
    fast = model.prepared("packed")
    for samples in (fast.sample("a red fox", steps=2, decode=False),
                    model.sample("a red fox", steps=2, decode=False, engine="packed"),
                    fast.sample("a red fox", steps=2, decode=False, cache=every(1, ("trunk",)))):  # fmt: skip
        assert 0 < relative(samples.x, plain.x) < 2e-5 and samples.engine.startswith("packed: ")
        assert "Conv2d" in samples.engine
    assert attributes(pipe) == before
    assert torch.equal(model.sample("a red fox", steps=2, decode=False).x, plain.x)
    with torch.no_grad():
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight.mul_(2.0)
    changed = model.sample("a red fox", steps=2, decode=False)
    assert relative(fast.sample("a red fox", steps=2, decode=False).x, changed.x) < 2e-5
    with pytest.raises(UserError, match="has none of what it looks for"):
        model.sample("a red fox", engine="fused")


def test_hooks_of_accelerate_stay_when_ours_go():
    pipe = tiny("pixart")
    plain, layer = run(pipe, "pixart"), pipe.transformer.proj_out
    live = gen.accelerate(pipe, engine="packed")
    hook = accelerate.hooks.AlignDevicesHook("cpu")
    accelerate.hooks.add_hook_to_module(layer, hook)
    live.remove()
    assert layer._hf_hook is hook and torch.equal(run(pipe, "pixart"), plain)
    assert networks(pipe)
