"""Dry runs: operations against closed forms, memory against what a CPU allocates, and what cannot be counted."""

from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.training import state
from gen.training.averages import Averages
from gen.training.dry_run import cost_of
from gen.training.objectives import Batch
from gen.training.optim import build_optimisers
from gen.training.recipes.aligned import aligned
from gen.training.recipes.autoencoder import autoencoder
from gen.training.recipes.digits import digits
from gen.training.recipes.photographs import photographs, transformer


def allocated(run):
    """The most bytes that the CPU holds at a time during two updates of a run."""
    model, micro = run.model, run.micro_batch_size or run.batch_size
    x, y = torch.zeros(micro, model.channels, model.size, model.size), torch.zeros(micro, dtype=torch.int64)
    batch = Batch(x, {"y": y}, Noise(tuple(range(micro))))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        net = model.build()
        state.enable_blocks(run, net)
        nets = run.objective.roles(net.train(), None)
        averages, optims = Averages(run.ema, nets, None), build_optimisers(run.optim, nets, {})
        averages.follow(nets)
        f = {"net": Denoiser(net, run.path, run.parameterisation)}
        for update in (1, 2):
            for _ in range(run.batch_size // micro):
                with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
                    ((_, loss, _),) = run.objective(f, batch)
                loss.backward()
            optims["net"].step()
            averages.update(update)
            net.zero_grad()
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(torch.tensor(sizes).cumsum(0).max())


WIDE = build("models", {"name": "dit", "preset": "digits", "width": 256})
RUNS = [  # run, how much of what is allocated the estimate may miss
    pytest.param(replace(digits(), batch_size=256), 0.04, id="activations"),
    pytest.param(replace(digits(), batch_size=256, micro_batch_size=64), 0.04, id="accumulated"),
    pytest.param(replace(digits(), model=WIDE, batch_size=4), 0.02, id="weights"),
    pytest.param(replace(override(photographs(), transformer()), precision="bf16"), 0.05, id="bf16"),
    pytest.param(replace(photographs(), batch_size=8), 0.05, id="unet"),
    pytest.param(replace(photographs(), batch_size=8, gradient_checkpointing=True), 0.2, id="recomputed"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Profiler")
@pytest.mark.parametrize(("run", "missed"), RUNS)
def test_memory_is_what_a_cpu_allocates(run, missed):
    cost = cost_of(run, gpus=1)
    memory = cost.lean if run.gradient_checkpointing else cost.memory
    assert 1 - missed < memory.peak / allocated(run) < 1.02


def test_operations_and_parameters_of_a_transformer():
    run = digits()
    cost, width, tokens = cost_of(run, gpus=1), 64, 16
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2  # products, attention, modulation
    outside = 256 * width + width**2 + 2 * width**2 + tokens * 2 * 4 * width  # time, last modulation, patches
    assert cost.forward == 2 * (4 * block + outside)
    assert 3 * cost.forward <= cost.update / run.batch_size < 3.03 * cost.forward
    trained = sum(p.numel() for p in run.model.build().parameters() if p.requires_grad)
    assert cost.parameters == {"net": (trained, tokens * width)}


@pytest.mark.slow
def test_eight_gpus_share_the_batch():
    alone, shared = (cost_of(digits(), gpus) for gpus in (1, 8))
    assert shared.micro_batch == alone.micro_batch / 8 == 8
    assert shared.update == alone.update
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 8, rel=0.01)
    assert alone.memory.buckets == 0 < shared.memory.buckets == shared.memory.gradients
    sharded = cost_of(replace(digits(), shard=True), 8).memory
    assert sharded.weights == shared.memory.weights // 8
    assert sharded.buckets == 0
    away = cost_of(replace(digits(), ema_device="cpu"), 8).memory
    assert away.averages == 0


def test_what_is_not_counted_is_said():
    assert cost_of(aligned()).notes == ("the encoder's own passes are not counted",)
    assert "head" in cost_of(aligned()).parameters


def test_an_autoencoder_has_no_evaluation():
    cost = cost_of(autoencoder())
    assert cost.forward is None
    assert cost.update > 0


def test_frozen_networks_need_not_be_there():
    """Their files are read in training; here they have a size."""
    encoder = {"name": "dinov2", "path": "nowhere", "width": 8, "grid": 4, "norm": "plain"}
    lpips = {"name": "lpips", "path": "nowhere.pth"}
    heads = {"name": "dino", "path": "nowhere.pth", "blocks": [2, 1], "side": 16, "width": 8, "depth": 2, "heads": 2}
    run = autoencoder()
    rae = build("models.autoencoders", {"name": "rae", "size": 32, "channels": 3, "encoder": encoder})
    against = build("training.objectives", {"name": "tokenizer", "perceptual": lpips, "discriminator": heads})
    cost = cost_of(replace(run, model=rae, objective=against))
    assert cost.parameters.keys() == {"net", "discriminator"}
    assert cost.notes == tuple(
        f"the {which}'s own passes are not counted" for which in ("frozen encoder", "perceptual distance")
    )
    held = build("training.objectives", {"name": "vf", "encoder": {**encoder, "grid": 8}, "gan_weight": 0.0})
    assert cost_of(replace(run, objective=held)).parameters["projection"] == (4 * 8, 0)


def test_a_run_that_cannot_start_is_refused():
    with pytest.raises(UserError, match="the run has no objective"):
        cost_of(replace(digits(), objective=None))
    with pytest.raises(UserError, match="batch_size = 64 is not shared equally by 7 GPUs"):
        cost_of(digits(), gpus=7)
