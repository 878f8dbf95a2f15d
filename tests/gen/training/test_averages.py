"""Averages of the weights on another device than the networks."""

import pytest
import torch

from gen.config import checkpoints
from gen.distillers.lib.networks import frozen_copy
from gen.training.averages import Averages
from gen.training.ema import Classic, Power
from gen.training.lora import LoRA, adapted, adapter_tensors
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny

PROFILES = (Classic(decay=0.9), Power(std=0.1))


def read(folder):
    manifest = checkpoints.read(folder)
    return {f"{n}/{k}": v for n in manifest["files"] for k, v in checkpoints.read_tensors(folder, n, manifest).items()}


def test_averages_that_a_thread_updates_have_the_same_bits(tmp_path):
    """Validated, saved and resumed in between; on a CPU, "cpu" differs in the thread and the copies alone."""
    changes = {"ema": PROFILES, "validate_every": 2, "save_every": 2, "micro_batch_size": 4}
    ours, theirs = (train(tiny(steps=5, ema_device=d, **changes), tmp_path / str(d), quiet=True) for d in ("cpu", None))
    assert ours.val_loss == theirs.val_loss
    for result, device in ((ours, "cpu"), (theirs, None)):
        train(tiny(steps=7, ema_device=device, **changes), result.folder, quiet=True)
    for name in ("checkpoints/step-0000006", "final"):
        one, other = read(ours.folder / name), read(theirs.folder / name)
        assert one.keys() == other.keys() and len(one) > 3 * len(PROFILES)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_average_is_up_to_date_when_it_is_looked_at():
    net = torch.nn.BatchNorm1d(2)
    kept = Averages(PROFILES, {"net": net}, "cpu")
    kept.follow({"net": net})
    torch.nn.init.constant_(net.weight, 3.0)
    net.running_mean = torch.full((2,), 5.0)  # another object than before
    kept.update(1)
    torch.nn.init.constant_(net.weight, 0.0)  # by the next step
    average = kept.nets["net", "ema"]
    assert torch.allclose(average.weight, torch.full((2,), 2 / 11 + 3 * 9 / 11))
    assert average.running_mean.tolist() == [5, 5] and not average.training


@pytest.mark.parametrize("device", [None, "cpu"])
def test_of_adapters_they_alone_are_copied_and_averaged(device):
    """Beside the network's own weights, in a role that is not trained, too."""
    net = adapted(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)), LoRA(2, init="pissa"))
    nets = {"net": net, "target": frozen_copy(net)}
    kept = Averages(PROFILES, nets, device)
    kept.follow(nets)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for one in nets.values():
        for adapter in adapter_tensors(dict(one.named_parameters())).values():
            adapter.data += 1.0
    kept.update(1)
    for (_, label), average in kept.nets.items():
        moved = 9 / 11 if label == "ema" else 1.0
        for (name, ours), (_, raw) in zip(average.named_parameters(), net.named_parameters(), strict=True):
            assert (ours is raw) != (".lora_" in name) and not ours.requires_grad
            torch.testing.assert_close(ours, before[name] + moved * (".lora_" in name))
        assert all(ours is raw for ours, raw in zip(average.buffers(), net.buffers(), strict=True))


@pytest.mark.gpu
def test_averages_on_the_cpu_follow_networks_on_a_gpu(tmp_path):
    nets = {}
    for device in ("cpu", None):
        trainer = Trainer(tiny(ema=PROFILES, ema_device=device), tmp_path / str(device), "never", "", True)
        trainer._open()
        for micro_batches in trainer.batches():
            trainer._after_step(trainer.step(micro_batches))
        trainer.output.close()
        nets[device] = trainer.averages.nets
    for key, net in nets["cpu"].items():
        for ours, theirs in zip(net.parameters(), nets[None][key].parameters(), strict=True):
            assert ours.device.type == "cpu" and theirs.device.type == "cuda"
            assert torch.allclose(ours, theirs.cpu(), rtol=1e-5, atol=1e-6)
