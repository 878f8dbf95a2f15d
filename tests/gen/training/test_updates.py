"""Steps whose numbers are read late: what the host reads in a step, and what an update with a bad number changes."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.config.errors import NonFinite
from gen.training import distributed
from gen.training.objectives import to_device
from gen.training.objectives.denoise import Denoising
from gen.training.optim.lion import Lion
from gen.training.state import optimiser_files
from gen.training.trainer import Trainer, train
from gen.training.updates import FiniteGuard, Numbers, StopSignal
from tests.gen.tiny import tiny

AdamW = torch.optim.AdamW


@dataclass(frozen=True)
class Breaks(Denoising):
    """Denoising whose loss or gradient is no number at some update."""

    at: int = 3
    what: str = "loss"

    def __call__(self, roles, batch):
        for role, loss, logs in super().__call__(roles, batch):
            factor = 1.0
            if batch.step == self.at:
                loss = loss * float("nan") if self.what == "loss" else loss + (loss - loss.detach()).sqrt()
            yield role, loss * factor, logs


OBSERVED: list[float] = []


@dataclass(frozen=True)
class Observes(Breaks):
    """The same, which has to know of every step before the next."""

    def __call__(self, roles, batch):
        assert len(OBSERVED) == batch.step
        yield from super().__call__(roles, batch)

    def observe(self, roles, logs):
        OBSERVED.append(logs["loss"])


VARIANTS = {
    "AdamW": {"objective": Breaks(at=-1)},
    "Lion": {"objective": Breaks(at=-1), "optim": Lion(lr=1e-4, weight_decay=0.1)},
    "averages on the CPU": {"objective": Breaks(at=-1), "ema_device": "cpu"},
    "an objective that observes": {"objective": Observes(at=-1)},
    "fp16": {"objective": Breaks(at=-1)},
}


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads: item(), bool(), float() and tolist()."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, self.read = 0, []
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)
        read = Numbers.read

        def late(numbers):
            self.read.append(numbers)
            self.count -= 1  # its own tolist
            return read(numbers)

        monkeypatch.setattr(Numbers, "read", late)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fused(monkeypatch):
    """AdamW as it is on a GPU."""
    monkeypatch.setattr("torch.optim.AdamW", lambda *args, foreach=None, **given: AdamW(*args, fused=True, **given))


@pytest.fixture
def late(monkeypatch, fused):
    """A CPU whose numbers are read as late as a GPU's."""
    read_late(monkeypatch)


def read_late(monkeypatch):
    def guard(optims, accelerator):
        return FiniteGuard(torch.device("cpu"), optims, accelerator.scaler is not None)

    monkeypatch.setattr(FiniteGuard, "of", guard)


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Changes of a run; those of fp16 are made in accelerate, which refuses it on a CPU."""
    OBSERVED.clear()
    if request.param == "fp16":
        in_half_precision(monkeypatch)
    return VARIANTS[request.param]


def in_half_precision(monkeypatch):
    create = distributed.create_accelerator

    def created(run, folder):
        accelerator = create(run, folder)
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=8.0), True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr(distributed, "create_accelerator", created)


def opened(folder, **changes):
    trainer = Trainer(tiny(**changes), folder, "never", "", True)
    trainer._open()
    return trainer


def state_of(trainer):
    tensors = trainer._model_files() | optimiser_files(trainer.nets, trainer.optims)[0]
    return {(file, name): v.clone() for file, held in tensors.items() for name, v in held.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_no_step_reads_a_number_but_those_of_the_step_before(tmp_path, monkeypatch, late, variant):
    trainer = opened(tmp_path / "run", log_every=100, validate_every=0, micro_batch_size=4, **variant)
    reads, logs = Reads(monkeypatch), []
    for step, micro_batches in enumerate(trainer.batches()):
        pending = None if trainer.unread is None else [update.numbers for update in trainer.unread[1]]
        reads.count, reads.read = 0, []
        with reads:
            logs.append(trainer.step(micro_batches))
        assert reads.count == 0, step
        assert list(dict.fromkeys(reads.read)) == (pending or [])
    assert logs[0] == {} and logs[1]["lr"] == trainer.run.optim.lr and logs[2] is not trainer.settle()
    trainer.output.close()


def test_late_numbers_are_the_same_numbers(tmp_path, monkeypatch, fused, variant):
    run = {"save_every": 2, "steps": 5, "log_every": 2, "validate_every": 0} | variant
    train(tiny(**run), tmp_path / "now", quiet=True)
    read_late(monkeypatch)
    OBSERVED.clear()
    train(tiny(**run), tmp_path / "late", quiet=True)
    OBSERVED.clear()
    train(tiny(**run | {"steps": 3}), tmp_path / "parts", quiet=True)
    train(tiny(**run), tmp_path / "parts", quiet=True)
    for name in ("net.safetensors", "net-ema.safetensors", "state/net.safetensors"):
        path = f"checkpoints/step-0000005/{name}"
        assert len({(tmp_path / run / path).read_bytes() for run in ("now", "late", "parts")}) == 1
    ours, theirs = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("now", "late"))
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(
    ("variant", "what"),
    [*((name, "loss") for name in VARIANTS), ("AdamW", "gradient"), ("Lion", "gradient")],
    indirect=["variant"],
)
def test_a_number_that_is_not_finite_changes_nothing(tmp_path, late, variant, what):
    given = variant | {"objective": replace(variant["objective"], at=3, what=what)}
    trainer = opened(tmp_path / "run", validate_every=0, log_every=100, save_every=3, **given)
    before, states = None, []
    with pytest.raises(NonFinite, match=r"^step 3: net loss .*nothing was updated\. .*step-0000003, with these"):
        for micro_batches in trainer.batches():
            before = state_of(trainer)
            trainer._after_step(trainer.step(micro_batches))
            states.append(state_of(trainer))
    trainer.output.close()
    assert trainer.steps_done == 3 and len(states) == 4  # it was noticed in the step after
    assert len(OBSERVED) == (3 if isinstance(variant["objective"], Observes) else 0)
    assert same(states[3], before) and same(state_of(trainer), before)
    assert not any(torch.equal(states[2][key], states[1][key]) for key in before if key[1] == "final_layer.linear.bias")


def test_it_is_noticed_before_anything_is_written(tmp_path, late):
    with pytest.raises(NonFinite, match="step 3: net loss nan"):
        train(tiny(objective=Breaks(), steps=4, validate_every=0), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    with pytest.raises(NonFinite, match="step 0: net loss nan"):
        train(tiny(objective=Breaks(at=0), validate_every=0, log_every=100), tmp_path / "first", quiet=True)


def test_an_overflow_of_fp16_skips_its_own_step_alone(tmp_path, monkeypatch, late):
    in_half_precision(monkeypatch)
    trainer = opened(tmp_path / "run", objective=Breaks(what="gradient"), validate_every=0, log_every=100)
    states = []
    for micro_batches in trainer.batches():
        trainer._after_step(trainer.step(micro_batches))
        states.append(trainer.nets["net"].final_layer.linear.bias.detach().clone())
    trainer.output.close()
    scale = trainer.accelerator.scaler.get_scale()
    assert [torch.equal(a, b) for a, b in pairwise(states)] == [False, False, True, False, False] and scale == 4


def test_who_reads_late():
    weight = [{"params": [torch.nn.Parameter(torch.ones(2))], "scale": 1.0}]

    def late(device, optim, scaler=None):
        accelerator = SimpleNamespace(device=SimpleNamespace(type=device), scaler=scaler)
        with patch.object(FiniteGuard, "__init__", lambda *_: None):
            return FiniteGuard.of([optim], accelerator) is not None

    fused = AdamW(weight, fused=True)
    assert late("cuda", fused) and late("cuda", fused, object()) and not late("cpu", fused)
    assert late("cuda", Lion(lr=1e-4).build(weight)) and not late("cuda", torch.optim.SGD(weight))


@pytest.mark.parametrize("build", [partial(AdamW, fused=True), lambda weights: Lion(lr=1e-3).build(weights)])
def test_shards_look_at_the_flag_as_whole_tensors_do(build):
    """One process; torch has AdamW's kernel for shards on a CPU as on a GPU."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh, nets = torch.distributed.init_device_mesh("cpu", (1,)), [torch.nn.Linear(4, 3) for _ in range(3)]
        for net in nets[1:]:
            net.load_state_dict(nets[0].state_dict())
        distributed.shard(nets[0], mesh)
        optims = [build(net.parameters()) for net in nets]
        guard = FiniteGuard(torch.device("cpu"), optims[:2])
        for at in range(4):
            if at == 2:
                guard.watch(torch.tensor([1.0, float("inf")]))
            for net, optim in zip(nets, optims, strict=True):
                net(torch.ones(2, 4)).square().mean().backward()
                if at < 2 or optim is not optims[2]:  # which knows no guard
                    optim.step()
                optim.zero_grad()
        for sharded, *whole in zip(*(net.parameters() for net in nets), strict=True):
            assert all(torch.equal(distributed.full_tensor(sharded), other) for other in whole)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("late", [False, True])
def test_one_process_stops_all_of_them(late):
    others = iter([0, 15, 0, 0])
    accelerator = SimpleNamespace(num_processes=2, device="cpu")
    accelerator.gather = lambda here: torch.cat([here, torch.tensor([next(others)])])
    stopped_by = StopSignal(accelerator, late)
    assert [stopped_by(0) for _ in range(4)] == ([0, 0, 15, 0] if late else [0, 15, 0, 0])
    assert StopSignal(SimpleNamespace(num_processes=1), late)(2) == 2


def test_copies_to_a_device_keep_their_bits():
    values = torch.arange(3.0)
    assert to_device(values, torch.device("cpu")) is values
    assert to_device(values, torch.device("meta")).device.type == "meta"


@pytest.mark.gpu
def test_a_gpu_never_waits_for_the_host(tmp_path):
    trainer = opened(tmp_path / "run", log_every=100, validate_every=0, steps=8)
    assert trainer.guard is not None
    waits = torch.cuda.set_sync_debug_mode
    for step, micro_batches in enumerate(trainer.batches()):
        waits("error" if step >= 2 else "default")  # the first steps allocate
        try:
            trainer.step(micro_batches)
        finally:
            waits("default")
    trainer.output.close()
