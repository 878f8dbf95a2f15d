"""Steps whose numbers are read late: what the host reads in a step, and what an update with a bad number changes."""

from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.config.errors import NonFinite
from gen.training.objectives import to_device
from gen.training.objectives.denoise import Denoising
from gen.training.optim.lion import Lion
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
    monkeypatch.setattr(FiniteGuard, "of", lambda run, objective, optims, *_: FiniteGuard(torch.device("cpu"), optims))


def opened(folder, **changes):
    trainer = Trainer(tiny(**changes), folder, "never", "", True)
    trainer._open()
    return trainer


def state_of(trainer):
    tensors = trainer._model_files() | trainer._optimiser_files()[0]
    return {(file, name): v.clone() for file, held in tensors.items() for name, v in held.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_no_step_reads_a_number_but_those_of_the_step_before(tmp_path, monkeypatch, late):
    trainer = opened(tmp_path / "run", log_every=100, validate_every=0, micro_batch_size=4)
    reads, logs = Reads(monkeypatch), []
    for step, micro_batches in enumerate(trainer._batches()):
        pending = None if trainer.unread is None else [update.numbers for update in trainer.unread[1]]
        reads.count, reads.read = 0, []
        with reads:
            logs.append(trainer.step(micro_batches))
        assert reads.count == 0, step
        assert list(dict.fromkeys(reads.read)) == (pending or [])
    assert logs[0] == {} and logs[1]["lr"] == 1e-3 and logs[2] is not trainer.settle()
    trainer.output.close()


def test_late_numbers_are_the_same_numbers(tmp_path, monkeypatch, fused):
    run = {"save_every": 2, "steps": 5, "log_every": 2}
    train(tiny(**run), tmp_path / "now", quiet=True)
    read_late(monkeypatch)
    train(tiny(**run), tmp_path / "late", quiet=True)
    train(tiny(**run | {"steps": 3}), tmp_path / "parts", quiet=True)
    train(tiny(**run), tmp_path / "parts", quiet=True)
    for name in ("net.safetensors", "net-ema.safetensors", "state/net.safetensors"):
        path = f"checkpoints/step-0000005/{name}"
        assert len({(tmp_path / run / path).read_bytes() for run in ("now", "late", "parts")}) == 1
    ours, theirs = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("now", "late"))
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_changes_nothing(tmp_path, late, what):
    trainer = opened(tmp_path / "run", objective=Breaks(what=what), validate_every=0, log_every=100, save_every=3)
    before, states = None, []
    with pytest.raises(NonFinite, match=r"^step 3: net loss .*nothing was updated\. .*step-0000003, with these"):
        for micro_batches in trainer._batches():
            before = state_of(trainer)
            trainer._after_step(trainer.step(micro_batches))
            states.append(state_of(trainer))
    trainer.output.close()
    assert trainer.steps_done == 3 and len(states) == 4  # it was noticed in the step after
    assert same(states[3], before) and same(state_of(trainer), before)
    assert not any(torch.equal(states[2][key], states[1][key]) for key in before if key[1] == "final_layer.linear.bias")


def test_it_is_noticed_before_anything_is_written(tmp_path, late):
    with pytest.raises(NonFinite, match="step 3: net loss nan"):
        train(tiny(objective=Breaks(), steps=4, validate_every=0), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    with pytest.raises(NonFinite, match="step 0: net loss nan"):
        train(tiny(objective=Breaks(at=0), validate_every=0, log_every=100), tmp_path / "first", quiet=True)


def test_who_reads_late():
    weight = [{"params": [torch.nn.Parameter(torch.ones(2))], "scale": 1.0}]

    def late(device, optim=None, scaler=None, sharded=False, **changes):
        run = tiny(**changes)
        accelerator = SimpleNamespace(device=SimpleNamespace(type=device), scaler=scaler)
        optims = [optim or AdamW(weight, fused=True)]
        with patch.object(FiniteGuard, "__init__", lambda *_: None):
            return FiniteGuard.of(run, run.objective, optims, accelerator, sharded) is not None

    assert late("cuda") and not late("cpu")
    assert not late("cuda", Lion(lr=1e-4).build(weight)) and not late("cuda", tiny().optim.build(weight))
    assert not late("cuda", scaler=object()) and not late("cuda", sharded=True)
    assert not late("cuda", ema_device="cpu") and not late("cuda", objective="curriculum")


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
    for step, micro_batches in enumerate(trainer._batches()):
        waits("error" if step >= 2 else "default")  # the first steps allocate
        try:
            trainer.step(micro_batches)
        finally:
            waits("default")
    trainer.output.close()
