"""Caches on live pipelines beside what else is done to a pipeline: adapters, quantisation, offloading, compilation."""

import accelerate
import diffusers
import pytest
import torch
from peft import LoraConfig

import gen
from gen.config.errors import UserError
from gen.samplers.interop.diffusers_scheduler import as_scheduler
from tests.models.interop.pipelines.test_live import attributes, every, run
from tests.pipelines.tiny import call, relative, tiny

NAME = "flux"  # two kinds of blocks, one whose MLP lies between hooks
CACHE = every(2, ("blocks.*.raw",))
TARGETS = ["to_q", "proj_mlp", "proj_out", "net.0.proj"]


def add_lora(net):
    torch.manual_seed(0)
    net.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))


def quantise(net):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(net, Int8WeightOnlyConfig())


def cast(net):
    net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def offload_groups(net):
    cpu = torch.device("cpu")
    net.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(net):
    cpu = torch.device("cpu")
    net.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def offload_model(net):
    accelerate.cpu_offload_with_hook(net, execution_device="cpu")


def hook_blocks(net):
    for block in net.transformer_blocks:
        accelerate.hooks.add_hook_to_module(block, accelerate.hooks.AlignDevicesHook("cpu"))


def compile_blocks(net):
    net.compile_repeated_blocks(backend="eager")


CHANGES = [add_lora, quantise, cast, offload_groups, offload_leaves, offload_model, hook_blocks,
           pytest.param(compile_blocks, marks=pytest.mark.slow)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("first", ["changed", "accelerated"])
def test_works_with(change, first):
    reference = tiny(NAME)
    change(reference.transformer)
    plain = run(reference, NAME)
    pipe = tiny(NAME)
    if first == "changed":
        change(pipe.transformer)
        run(pipe, NAME)
        before = attributes(pipe)
    live = gen.accelerate(pipe, every(1, ("blocks.*.raw",)))
    if first == "accelerated":
        change(pipe.transformer)
    assert torch.equal(run(pipe, NAME), plain)
    live.cache = CACHE
    x = run(pipe, NAME)
    assert live.report.full == 4 and live.report.computed_share == 0.5
    assert not torch.equal(x, plain) and torch.equal(run(pipe, NAME), x)
    live.remove()
    assert torch.equal(run(pipe, NAME), plain)
    if first == "changed":
        assert attributes(pipe) == before


class Counting(accelerate.hooks.ModelHook):
    """Counts calls."""

    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_hooks_of_accelerate_stay_when_ours_go_and_are_missed_when_they_take_ours_along():
    pipe, hook = tiny("pixart"), Counting()
    plain, block = run(pipe, "pixart"), pipe.transformer.transformer_blocks[0]
    live = gen.accelerate(pipe, every(2, ("trunk",)))
    accelerate.hooks.add_hook_to_module(block, hook)
    live.remove()
    assert torch.equal(run(pipe, "pixart"), plain) and hook.calls == 4
    live = gen.accelerate(pipe, every(2, ("trunk",)))
    accelerate.hooks.remove_hook_from_module(block)
    with pytest.raises(UserError, match="no site of this network matches 'trunk'"):
        run(pipe, "pixart")
    live.remove()
    assert torch.equal(run(pipe, "pixart"), plain)


def test_cached_adapters_are_as_their_own_cached_network():
    """A cached output is that of the layer with its adapter, not the layer's with the adapter's added again."""
    pipe = tiny(NAME)
    live = gen.accelerate(pipe, CACHE)
    add_lora(pipe.transformer)
    late = run(pipe, NAME)
    live.remove()
    gen.accelerate(pipe, CACHE)
    assert torch.equal(run(pipe, NAME), late)
    pipe.transformer.fuse_lora()
    assert relative(run(pipe, NAME), late) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_within_the_hooks(monkeypatch):
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: whole(f, backend="eager"))
    pipe = tiny("wan")
    offload_groups(pipe.transformer)  # whose hooks stay
    plain, before = run(pipe, "wan"), [block.forward for block in pipe.transformer.blocks]
    with gen.accelerate(pipe, every(1, ("trunk",)), engine="compiled") as live:
        assert relative(run(pipe, "wan"), plain) < 1e-5
        live.cache = every(2, ("trunk",))
        run(pipe, "wan")
        assert live.report.full == 4
    assert [block.forward for block in pipe.transformer.blocks] == before
    assert torch.equal(run(pipe, "wan"), plain)
    for name, blocks in (("wan", 2), ("sd15", 4)):
        pipe = tiny(name)
        plain, left = run(pipe, name), attributes(pipe)
        with gen.accelerate(pipe, engine="compiled") as live:
            assert relative(run(pipe, name), plain) < 1e-5 and f"compiled: {blocks} blocks" in repr(live)
        assert torch.equal(run(pipe, name), plain) and attributes(pipe) == left


def test_image_to_image_begins_late():
    parts = tiny("sd15").components
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    given = {key: value for key, value in call("sd15").items() if key not in ("height", "width")}
    given |= {"image": torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)), "strength": 0.5}
    with gen.accelerate(pipe, every(2, ("trunk",))) as live:
        pipe(**given)
        assert [context.step for context in live.report.cache.contexts] == [2, 3]
        assert live.report.full == 1


def test_a_pipeline_of_the_same_parts_is_not_cached():
    pipe = tiny("sd15")
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    plain = run(pipe, "sd15")
    with gen.accelerate(pipe, every(2, ("trunk",))):
        assert torch.equal(run(other, "sd15"), plain)
        with pytest.raises(UserError, match="accelerated already"):
            gen.accelerate(other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", ["changed", "accelerated"])
def test_beside_a_compiled_network(first):
    pipe = tiny("pixart")
    plain = run(pipe, "pixart")
    live = gen.accelerate(pipe, every(2, ("trunk",))) if first == "accelerated" else None
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    live = live or gen.accelerate(pipe, every(2, ("trunk",)))
    run(pipe, "pixart")
    assert live.report.full == 2
    live.cache = every(1, ("trunk",))
    assert torch.equal(run(pipe, "pixart"), plain)


@pytest.mark.parametrize("name", ["dit", "wan", "flux"])
def test_our_solvers_run_under_a_cache_and_films_are_compared(name, tmp_path):
    pipe = tiny(name)
    pipe.scheduler = as_scheduler("heun", like=pipe.scheduler)
    plain = run(pipe, name)
    with gen.accelerate(pipe, "taylorseer_lite", interval=1, coordinate="lam") as live:
        assert torch.equal(run(pipe, name), plain)
        assert live.report.cache.steps == 4 and {c.stage for c in live.report.cache.contexts} == {0, 1}
        given = {key: value for key, value in call(name).items() if key not in ("output_type", "generator")}
        drift = live.drift(**given)
        assert drift.latents == 0 and drift.psnr == 100
        with pytest.warns(UserWarning, match="as_scheduler again"):
            pipe.save_pretrained(tmp_path)
    assert (tmp_path / "scheduler").is_dir()
