"""Students of pipelines: adapters alone are trained and stored, and the pipeline loads them."""

from __future__ import annotations

import functools

import pytest
import torch

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import override
from gen.data.given import GivenData
from gen.diffusion.noise import training_noise
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Skip
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.models.interop.pipelines.students import Rows, load_adapters, save_adapters, teacher_samples
from gen.samplers.interop.diffusers_scheduler import as_scheduler
from gen.samplers.solvers.euler import Euler
from gen.training.lora import LoRA
from gen.training.objectives import Batch
from gen.training.run import Run
from gen.training.trainer import train
from tests.pipelines.tiny import call, relative, tiny

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DMD2 = {"name": "dmd2", "critic_steps": 1, "guide": {"name": "cfg", "scale": 3.0}}
STUDENTS = [
    ("sd3", {"name": "reflow"}),
    ("sd15", {"name": "ect", "class_dropout": 0.5, "stages": 1}),
    ("sd3", DMD2),
]
IDS = [f"{name}-{method['name']}" for name, method in STUDENTS]


@functools.cache
def teacher(name):
    """A pipeline, its denoiser, and samples of it with their noise."""
    pipe = tiny(name)
    heard = listen(pipe, **call(name))
    f = denoiser_of(heard)
    cond = {key: value.repeat(4, *[1] * (value.ndim - 1)) for key, value in heard.cond.items()}
    return pipe, f, teacher_samples(f, cond, times_of(heard), "euler", {"name": "cfg", "scale": 3.0}, pairs=True)


def run_of(name, method, **changes):
    _, f, rows = teacher(name)
    given = rows.tensors if method["name"] == "reflow" else {k: v for k, v in rows.tensors.items() if k != "noise"}
    fields = {"lora": LoRA(2, 4.0), "optim": {"name": "adamw", "lr": 1e-2}, "ema": [], "steps": 4, "batch_size": 4}
    quiet = {"sample_every": 0, "validate_every": 0, "save_every": 2, "log_every": 1}
    data = GivenData(Rows(given), value_range=None, holdout=0.0)
    terms = {"path": f.path, "parameterisation": f.parameterisation}
    return Run(data=data, objective=method, **terms, **{"model": f.net} | fields | quiet | changes)


@pytest.mark.parametrize(("name", "method"), STUDENTS, ids=IDS)
def test_adapters_alone_are_trained_stored_and_resumed_to_the_bit(name, method, tmp_path):
    _, f, _ = teacher(name)
    before = {key: value.clone() for key, value in f.net.state_dict().items()}
    done = train(run_of(name, method), tmp_path / "whole", quiet=True)
    info = checkpoints.read(done.folder / "final")
    roles = {file.removesuffix(".safetensors") for file in info["files"] if "/" not in file}
    for role in roles:
        stored = checkpoints.read_tensors(done.folder / "final", f"{role}.safetensors", info)
        assert stored and all(".lora_" in key for key in stored), role
    assert roles == ({"net", "fake"} if method["name"] == "dmd2" else {"net"})
    half = done.folder / "checkpoints" / "step-0000002"
    parts = train(run_of(name, method), tmp_path / "parts", resume=str(half), quiet=True)
    assert checkpoints.read(parts.folder / "final")["files"] == info["files"]
    assert all(torch.equal(before[key], value) for key, value in f.net.state_dict().items())
    assert all(p.grad is None for p in f.net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), STUDENTS[:2], ids=IDS[:2])
def test_a_few_steps_lower_the_loss(name, method, tmp_path):
    """At fixed times and noise, from that of the teacher itself."""
    run = run_of(name, method, steps=30, batch_size=8)
    done = train(run, tmp_path / "run", quiet=True)
    _, f, rows = teacher(name)
    student = gen.load(done.folder, model=f.net).denoiser
    cond = {key: value for key, value in rows.tensors.items() if key != "x" and (key != "noise" or name == "sd3")}
    batch = Batch(rows.tensors["x"], cond, training_noise(0, 0, range(8)))
    with torch.no_grad():
        before, after = (float(run.objective.validate({"net": g}, batch)) for g in (f, student))
    assert after < 0.9 * before


LORAS = [("sd3", 1, {}), ("sd15", 2, {}), ("sd3", 1, {"lora.init": "pissa"}), ("sd3", 1, {"lora.method": "dora"})]


@pytest.mark.parametrize(("name", "steps", "changes"), LORAS, ids=["sd3", "sd15", "sd3-pissa", "sd3-dora"])
def test_the_pipeline_with_its_adapters_gives_what_gen_gives(name, steps, changes, tmp_path):
    pipe, f, _ = teacher(name)
    done = train(override(run_of(name, {"name": "ect"}), changes), tmp_path / "run", quiet=True)
    file = save_adapters(done.folder, pipe, tmp_path / "lora")
    student = gen.load(done.folder, model=f.net).denoiser
    own = tiny(name)
    own.load_lora_weights(file.parent)
    grid = gen.build("samplers.grids", {"name": "linear"})
    own.scheduler = as_scheduler(Euler(), f.path, f.parameterisation, grid, time_scale=1000.0 if name == "sd3" else 1.0)
    given = {**call(name), "num_inference_steps": steps, "guidance_scale": 1.0}
    theirs = next(iter(own(**given).values()))
    heard, times = listen(own, **given | {"generator": call(name)["generator"]}), grid.times(f.path, steps)
    with torch.no_grad():
        ours, plain = (integrate(g, heard.latents, times, Euler(), cond=heard.cond) for g in (student, f))
    assert relative(ours, theirs) <= 5e-5
    assert relative(plain, theirs) > 1e-3


def test_several_adapters_of_a_pipeline_are_added_by_factors(tmp_path):
    pipe, f, _ = teacher("sd3")
    runs = [run_of("sd3", {"name": "ect"}, seed=seed, lora=LoRA(2, 4.0)) for seed in (0, 1)]
    done = [train(run, tmp_path / f"run-{i}", quiet=True).folder for i, run in enumerate(runs)]
    own, names = tiny("sd3"), [tmp_path / "style.v1", tmp_path / "subject"]
    for folder, name in zip(done, names, strict=True):
        save_adapters(folder, pipe, name)
    load_adapters(own, [(names[0], 0.7), (names[1] / "pytorch_lora_weights.safetensors", 0.3)])
    assert own.get_active_adapters() == ["style-v1", "subject"]
    own.fuse_lora(adapter_names=own.get_active_adapters())
    own.unload_lora_weights()
    base, *changed = (net.state_dict() for net in (f.net, *(gen.load(d, model=f.net).denoiser.net for d in done)))
    for name, weight in own.transformer.state_dict().items():
        first, second = (some[f"inner.{name}"] - base[f"inner.{name}"] for some in changed)
        torch.testing.assert_close(weight, base[f"inner.{name}"] + 0.7 * first + 0.3 * second, rtol=1e-5, atol=1e-6)
    for given, said in (
        ([(done[0], 1.0)], "is not there; allowed for a pipeline: folders as save_adapters writes"),
        ([(names[0], 1.0), (names[0], 1.0)], "needs another name for each"),
    ):
        with pytest.raises(UserError, match=said):
            load_adapters(tiny("sd3"), given)
    with pytest.raises(UserError, match="is of no network of a StableDiffusionPipeline"):
        load_adapters(tiny("sd15"), [(names[0], 1.0)])


def test_a_student_may_lack_blocks(tmp_path):
    pipe, f, rows = teacher("sd3")
    heard = listen(pipe, **call("sd3"))
    pruned = denoiser_of(heard, without=("blocks.1",))
    cond = {key: value for key, value in rows.tensors.items() if key not in ("x", "noise")}
    x, t = rows.tensors["noise"], torch.tensor(0.7, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = pruned(x, t, cond), f(x, t, cond, tap=Skip(("blocks.1",)))
    assert torch.equal(ours.x0, theirs.x0) and relative(ours.x0, f(x, t, cond).x0.detach()) > 1e-3
    run = run_of("sd3", {"name": "denoise", "class_dropout": 0.0}, model=pruned.net, steps=30, batch_size=8)
    done = train(run, tmp_path / "run", quiet=True)
    student = gen.load(done.folder, model=pruned.net).denoiser
    batch = Batch(rows.tensors["x"], cond, training_noise(0, 0, range(8)))
    with torch.no_grad():
        before, after = (float(run.objective.validate({"net": g}, batch)) for g in (pruned, student))
    assert after < 0.9 * before
    with pytest.raises(UserError, match="other weights than those of the network that was given"):
        gen.load(done.folder, model=f.net)
    with pytest.raises(UserError, match=r"without: SD3Transformer2DModel has no 'blocks.7'. Did you mean 'blocks"):
        denoiser_of(heard, without=("blocks.7",))


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    pipe, _, _ = teacher("sd3")
    done = train(run_of("sd3", {"name": "ect"}, steps=1), tmp_path / "run", quiet=True)
    other = tiny("sd3")
    other.transformer.proj_out.weight.data.add_(1)
    with pytest.raises(UserError, match="other weights than those of the network that was given"):
        gen.load(done.folder, model=denoiser_of(listen(other, **call("sd3"))).net)
    with pytest.raises(UserError, match="given as an object of"):
        gen.load(done.folder)
    with pytest.raises(UserError, match="no weights 'ema'"):
        save_adapters(done.folder, pipe, tmp_path / "lora", weights="ema")
    with pytest.raises(UserError, match=r"of another network than the unet of this Stable"):
        save_adapters(done.folder, tiny("sd15"), tmp_path / "lora")
    other.transformer.transformer_blocks[0].attn.to_q = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"lora_A of transformer_blocks.0.attn.to_q is .*, and it has one of \[3, 3\]"):
        save_adapters(done.folder, other, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    with pytest.raises(UserError, match="allowed: x and others with as many rows"):
        Rows({"x": torch.zeros(2, 1), "y": torch.zeros(3)})
    plain = train(run_of("sd3", {"name": "ect"}, steps=1, lora=None), tmp_path / "plain", quiet=True)
    with pytest.raises(UserError, match="has no adapters"):
        save_adapters(plain.folder, pipe, tmp_path / "lora")
