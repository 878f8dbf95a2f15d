"""Two processes compute what one does: the global batch, its noise and its order are shared out, not multiplied.

The launches are a user's, on CPUs. The optimiser is gradient descent: Adam's steps hardly depend on a gradient's size,
so they would not show one that is summed where it should be averaged.
"""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from gen import load
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import override
from gen.distillers.consistency import Consistency
from gen.training.distributed import device_mesh
from gen.training.log import ProgressBar, read_metrics
from gen.training.lora import OWN, LoRA
from gen.training.recipes.lists import lists
from gen.training.run import run_spec
from gen.training.trainer import Trainer, train
from tests.gen.tiny import seal, tiny
from tests.models.test_families import digits, random_net
from tests.ranks import ROOT, environment, spread

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0"]  # fmt: skip
SHARDED = ["--use_fsdp", "--fsdp_version", "2"]


def small(**changes):
    return tiny(**{"optim": {"name": "tests.contracts.my_optimiser:SGD"}, "ema": ({"name": "classic", "decay": 0.5},),
                   "save_every": 3, "sample_every": 6} | changes)  # fmt: skip


def written(run, folder):
    """The file of a run that is to be trained in a folder."""
    folder.parent.mkdir(exist_ok=True)
    spec = folder.parent / f"{folder.name}.json"
    spec.write_text(json.dumps(run_spec(run)))
    return spec


def launch(start, run, folder, *options):
    """scripts/train.py on several processes."""
    command = [*start, "scripts/train.py", str(written(run, folder)), "--out", str(folder), "--quiet", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def together(run, folder, *options):
    """The same as a launcher would start two processes; how often each says the last step."""
    words = ["train", str(written(run, folder)), "--out", str(folder), "--quiet", *options]
    ranks = spread("tests.gen.parts:commanded", 2, folder.parent / f"{folder.name}-ranks", 300, WORDS=" ".join(words))
    return [int(rank["said"]) for rank in ranks]


def apart(one, two):
    """The largest difference between two checkpoints that hold the same tensors."""
    a, b = checkpoints.read(one), checkpoints.read(two)
    assert checkpoints.file_names(a) == checkpoints.file_names(b)
    assert a["step"] == b["step"]
    worst = 0.0
    for name in checkpoints.file_names(a):
        ours, theirs = checkpoints.read_tensors(one, name, a), checkpoints.read_tensors(two, name, b)
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
        worst = max([worst, *(float((ours[key] - theirs[key]).abs().max()) for key in ours)])
    return worst


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    train(small(), folder, quiet=True)
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one(one, tmp_path):
    assert together(small(), tmp_path / "two") == [1, 0]
    assert apart(one / "checkpoints/step-0000006", tmp_path / "two/checkpoints/step-0000006") < 1e-6
    assert apart(one / "final", tmp_path / "two/final") < 1e-6
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (one, tmp_path / "two"))
    assert [e["step"] for e in ours] == [e["step"] for e in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-5)
    made, expected = (load(folder, allow=["tests"]).sample(4, steps=2).x for folder in (tmp_path / "two", one))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_with_a_part_each_go_on_as_one(one, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(one / "checkpoints/step-0000003", folder / "checkpoints/step-0000003")
    launch([*ACCELERATE, *SHARDED], small(), folder)
    assert apart(one / "checkpoints/step-0000006", folder / "checkpoints/step-0000006") < 1e-6
    assert apart(one / "final", folder / "final") < 1e-6
    pictures = [(f / "samples/step-0000006.png").stat().st_size for f in (one, folder)]
    assert pictures[1] == pytest.approx(pictures[0], rel=0.05)
    for place in (one, folder):  # and then one process goes on from either
        train(small(steps=8), place.parent / "on", resume=str(place / "checkpoints/step-0000006"), quiet=True)
    assert apart(one.parent / "on/final", tmp_path / "on/final") < 1e-6


CHANGES = {
    "micro-batches": {"micro_batch_size": 2},
    "adam": {"optim": {"name": "adamw", "lr": 1e-3}, "ema": ()},
    "bfloat16": {"precision": "bf16"},
    "clipped": {"clip": 0.01},
}
CLOSE = {"adam": 2e-5, "bfloat16": 1e-3}


ADAPTERS = {
    "adapters": LoRA(2, method="dora", init="pissa"),
    "adapters by data": LoRA(2, init="lora_ga"),
    "kronecker": LoRA(2, method="lokr"),
}


def ways(name):
    """Replicated and in parts; adapters but in parts, of which those by data say the most."""
    return (True,) if name in ("adapters", "kronecker") else (False, True)


def trainings(folder):
    """Fields of runs by name; the target of "roles" has no optimiser, for its objective moves it."""
    method = Consistency(velocity="data")
    loras = {name: {"init": f"{folder}/base", "lora": lora} for name, lora in ADAPTERS.items()}
    return CHANGES | {"roles": {"objective": method, "sampler": method.sampler, "sample_every": 0}} | loras


@pytest.mark.slow
def test_two_processes_train_as_one_whatever_is_changed_replicated_and_in_parts(tmp_path):
    """One start of processes for all: each costs more than what they train."""
    train(small(), tmp_path / "base", quiet=True)
    assert all(rank["done"] for rank in spread("tests.gen.parts:trained", 2, tmp_path, 600, FOLDER=str(tmp_path)))
    for name, given in trainings(tmp_path).items():
        train(small(**given | {"micro_batch_size": None}), tmp_path / name, quiet=True)
        for shard in ways(name):
            far = apart(tmp_path / name / "final", tmp_path / f"{name} {shard}/final")
            assert far < CLOSE.get(name, 1e-6), (name, shard)
    for name in ADAPTERS:  # which checkpoints hold alone, and from which training goes on to the bit
        final = checkpoints.read(tmp_path / f"{name} True/final")
        assert checkpoints.read(tmp_path / f"{name} again/final")["files"] == final["files"]
        assert all(
            OWN.fullmatch(key)
            for key in checkpoints.read_tensors(tmp_path / f"{name} True/final", "net.safetensors", final)
        )
        assert load(tmp_path / f"{name} True", allow=["tests"]).sample(2, steps=2).x.isfinite().all()


SHARDS = {
    "checkpoints": "sharded",
    "shard": True,
    "optim": {"name": "adamw", "lr": 1e-3},
    "gradient_checkpointing": True,
}


@pytest.mark.slow
def test_sharded_checkpoints_are_written_by_all_processes_and_a_damaged_one_is_passed_over(tmp_path):
    """tests/gen/training/test_killed_process.py goes on from such with one, two and four processes."""
    run, two = small(**SHARDS), tmp_path / "two"
    launch(TORCHRUN, run, two)
    middle, end = (two / f"checkpoints/step-000000{step}" for step in (3, 6))
    info = checkpoints.read(end)
    first, second = (about for _, about in sorted(checkpoints.files_of(info, "net.safetensors").items()))
    assert not (end / "net.safetensors").exists() and first["bytes"] == pytest.approx(second["bytes"], rel=0.3)
    whole = checkpoints.read_tensors(end, "net.safetensors", info)
    model, raw = load(two), load(two, weights="raw").denoiser.net.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in raw.items())
    assert model.sample(2, steps=2).x.isfinite().all() and not list(two.glob("**/.partial*"))

    replicas = small(**SHARDS | {"shard": False})
    together(replicas, tmp_path / "replicas", "--resume", str(middle))
    assert apart(tmp_path / "replicas/checkpoints/step-0000006", end) < 2e-5

    damaged = next(end.glob("net-00002*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"net-00002-of-00002.safetensors is damaged: it does not match its sha256"):
        checkpoints.read_tensors(end, "net.safetensors", info)
    with pytest.warns(UserWarning, match="passing over a damaged checkpoint"):
        assert checkpoints.newest(two / "checkpoints") == middle


TOPOLOGIES = {"replicated": {}, "gathered": {"shard": True}, "parts": {"shard": True, "checkpoints": "sharded"}}


def saved_again(folder, start, kind):
    """Resume a run where it ends: its checkpoint is written anew, by other processes."""
    changes = {"optim": {"name": "adamw", "lr": 1e-3}, "steps": 2, "save_every": 0, "sample_every": 0}
    resume = next((folder / start / "checkpoints").iterdir()) if start else "never"
    train(small(**changes, **TOPOLOGIES[kind]), folder / f"{start}-{kind}", resume=str(resume), quiet=True)


@pytest.mark.slow
def test_a_checkpoint_of_any_topology_is_restored_by_any_other_to_the_bit(tmp_path):
    """Weights, averages and the optimiser's state, of 1, 2 and 4 processes that are replicated or sharded."""
    saved_again(tmp_path, "", "replicated")
    of_four, of_two = "-replicated-parts", "-replicated-parts-parts"
    for count, how in (
        (4, "-replicated:parts"),
        (2, f"-replicated:replicated {of_four}:parts {of_four}:gathered"),
        (4, f"{of_two}:parts {of_two}:replicated"),
    ):
        spread("tests.gen.parts:topologies", count, tmp_path / f".{count}{len(how)}", FOLDER=str(tmp_path), HOW=how)
    saved_again(tmp_path, f"{of_two}-parts", "replicated")  # in one process
    folders = [path / "checkpoints/step-0000002" for path in tmp_path.glob("-*")]
    infos = [checkpoints.read(folder) for folder in folders]
    assert sorted(len(checkpoints.files_of(info, "net.safetensors")) for info in infos) == [1, 1, 1, 1, 1, 2, 4, 4]
    assert all(info["optim"] == infos[0]["optim"] for info in infos)
    for name in checkpoints.file_names(infos[0]):
        first, *others = map(checkpoints.read_tensors, folders, [name] * len(folders), infos)
        assert all(other.keys() == first.keys() for other in others)
        assert all(torch.equal(other[key], value) for other in others for key, value in first.items())


@pytest.mark.slow
def test_a_sharded_checkpoint_is_there_once_all_shards_are(tmp_path):
    for rank in spread("tests.gen.parts:interrupted", 2, tmp_path / "ranks", FOLDER=str(tmp_path / "run")):
        assert rank["right"]
    (folder,) = (tmp_path / "run").iterdir()
    net, info = random_net(digits("dit")).state_dict(), checkpoints.read(folder)
    read = checkpoints.read_tensors(folder, "net.safetensors", info)
    assert folder.name == "step-0000001" and len(info["files"]) == 2 and read.keys() == net.keys()
    assert all(torch.equal(value, net[key]) for key, value in read.items())
    name, about = max(info["files"].items())
    key, cut = next(iter(about["slices"].items()))
    for wrong in ({"start": -1}, {"stop": "all"}, {"shape": 3}):
        seal(folder, files=info["files"] | {name: about | {"slices": {key: cut | wrong}}})
        with pytest.raises(UserError, match="slices is of another type"):
            checkpoints.read(folder)
    seal(folder, files=info["files"] | {name: about | {"slices": {key: cut | {"start": 0}}}})
    with pytest.raises(UserError, match=r"damaged|do not add up"):
        checkpoints.read_tensors(folder, "net.safetensors", checkpoints.read(folder))


@pytest.mark.slow
def test_every_family_is_cut_in_parts(tmp_path):
    for rank in spread("tests.gen.parts:everything", 2, tmp_path, timeout=600):
        assert rank["worst"] < 1e-6


def test_no_process_ends_before_a_checkpoint_is_there(tmp_path, monkeypatch):
    """Of one that ended sooner, as after a signal, torchrun would end the others: the first of them is writing."""
    trainer, did, write = Trainer(small(), tmp_path / "run", "never", "", True), [], checkpoints.write
    trainer.progress = ProgressBar("run", 1, 0, quiet=True)
    monkeypatch.setattr(checkpoints, "write", lambda *args: did.append("write") or write(*args))
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", lambda: did.append("wait"))
    trainer.save()
    trainer.saver.settle()
    assert did == ["wait", "write", "wait"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"FSDP_VERSION": "1"}, "accelerate launch --fsdp_version 1: allowed is 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "accelerate launch --fsdp_offload_params true: allowed is false"),
    ],
)
def test_launches_that_cannot_be_had_are_refused(tmp_path, monkeypatch, environ, said):
    for key, value in ({"ACCELERATE_USE_FSDP": "true"} | environ).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=f"^{said}$"):
        train(small(), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"compile": True}, "compiled or sharded"), ({"ema_device": "cpu"}, "leave out ema_device, or shard")],
)
def test_what_a_sharded_run_cannot_have_is_refused(changes, said):
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match=said):
        device_mesh(small(shard=True, **changes), two)


def test_processes_that_do_not_meet_are_refused(one, tmp_path, monkeypatch):
    """As on a machine with one GPU that accelerate cannot share; `one` has settled what it sees."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^2 processes were launched, and accelerate sees 1 on cpu$"):
        train(small(), tmp_path / "run", quiet=True)


def test_one_process_has_nothing_to_share(one, tmp_path):
    train(small(shard=True), tmp_path / "run", quiet=True)
    assert apart(one / "final", tmp_path / "run/final") == 0


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_experts_are_balanced_by_two_processes_as_by_one(tmp_path, shard):
    sizes = {"model.width": 16, "model.depth": 2, "model.heads": 2, "steps": 3, "batch_size": 8, "log_every": 1}
    experts = {"model.experts": {"count": 4, "top_k": 2, "hidden": 16}, "objective.balance": 0.5}
    changes = {"optim": {"name": "tests.contracts.my_optimiser:SGD"}, "sample_every": 0, "validate_every": 0}
    run = override(lists(), sizes | experts | changes | {"save_every": 0})
    train(run, tmp_path / "one", quiet=True)
    together(override(run, {"shard": shard}), tmp_path / "two")
    one, two = (
        [row[key] for row in read_metrics(tmp_path / name / "metrics.jsonl") for key in ("loss", "grad_norm")]
        for name in ("one", "two")
    )
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-5)
