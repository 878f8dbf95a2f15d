"""What each process of a test of tests/gen/training/test_processes.py computes."""

import contextlib
import copy
import io
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import NonFinite, UserError
from gen.config.spec import find
from gen.training.distributed import full_tensor, meta_copy, shard, unshard
from gen.training.shards import Shards, from_rows, rows_of
from gen.training.state import enable
from gen.training.trainer import train
from tests.gen.training.test_processes import ADAPTERS, saved_again, small, trainings, ways
from tests.models.test_families import FAMILIES, digits, inputs, random_net
from tests.ranks import as_launched

REFUSED = {
    "edm2": r"^EDM2Net cannot be sharded: .* is a single number; leave out shard$",
    "energy": r"^EnergyNet cannot be sharded: it is itself a derivative; leave out shard$",
    "cooperative": r"^CooperativeNet cannot be sharded: it is itself a derivative; leave out shard$",
}


def text():
    net = random_net(find("text", "models").preset("nano", width=32, depth=2))
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, net.spec.vocab_size, (4, 16), generator=g)
    return net, (x,)


def fused():
    net = random_net(digits("dit"))
    for block in net.blocks:
        block.fused = True
    return net, ()


def checkpointed():
    net, given = fused()
    enable(net, "gradient_checkpointing")
    return net, given


def cut(given, own):
    return given[own] if isinstance(given, torch.Tensor) else {k: v[own] for k, v in given.items()}


def own_rows(tensor):
    rows = rows_of(tensor)
    return ... if rows is None else slice(rows.start, rows.stop)


def interrupted():
    """A checkpoint is written; then one that the second process cannot write, and one that the first cannot name."""
    folder, rank = Path(os.environ["FOLDER"]), dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    net = random_net(digits("dit"))
    shard(net, mesh)
    files, about = {"net.safetensors": net.state_dict()}, {"step": 1}
    Shards.of(files).write(folder / "step-0000001", about)
    with torch.no_grad():
        if rank:
            next(p for p in net.parameters() if len(p.to_local())).to_local().fill_(math.nan)
    said = (
        r"^step-0000002/net-00002.* is not finite; not saved$" if rank else r"^process 1: step-0000002/net.*not finite"
    )
    with pytest.raises(NonFinite if rank else OSError, match=said):
        Shards.of(files).write(folder / "step-0000002", about)
    net.load_state_dict({k: from_rows(torch.zeros_like(v.to_local()), v) for k, v in net.state_dict().items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "complete", broken)
        with pytest.raises(OSError, match="No space left"):
            Shards.of(files).write(folder / "step-0000003", about)
    dist.barrier()
    right = checkpoints.newest(folder) == folder / "step-0000001"
    return {"right": torch.tensor(right)}


def broken(*args):
    raise OSError(28, "No space left on device")


def commanded():
    """A command of gen as a launcher would start it: how often its last step is said."""
    as_launched()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(os.environ["WORDS"].split()) == 0
    return {"said": torch.tensor(said.getvalue().count("step 6"))}


def trained():
    """Whatever tests.gen.training.test_processes changes, trained by all processes, replicated and in parts."""
    as_launched()
    folder = Path(os.environ["FOLDER"])
    for name, given in trainings(folder).items():
        for in_parts in ways(name):
            train(small(**given, shard=in_parts), folder / f"{name} {in_parts}", quiet=True)
    for name in ADAPTERS:
        run, half = small(**trainings(folder)[name], shard=True), folder / f"{name} True/checkpoints/step-0000003"
        train(run, folder / f"{name} again", resume=str(half), quiet=True)
    return {"done": torch.tensor(True)}


def everything():
    count, rank, mesh = dist.get_world_size(), dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    worst = []
    for name in [*FAMILIES, "text", "fused", "checkpointed"]:
        made = {"text": text, "fused": fused, "checkpointed": checkpointed}.get(name)
        net, given = made() if made else (random_net(digits(name)), ())
        x, *rest = given or inputs(net, n=4)
        one, thin = copy.deepcopy(net), meta_copy(net)
        if name in REFUSED:
            with pytest.raises(UserError, match=REFUSED[name]):
                shard(net, mesh)
            continue
        shard(net, mesh)
        own = slice(rank * 4 // count, (rank + 1) * 4 // count)
        part = net(x[own], *(cut(given, own) for given in rest))
        all_of_it = one(x, *rest)
        worst.append((part - all_of_it[own]).abs().max())
        (part**2).mean().backward()
        (all_of_it**2).mean().backward()
        for (ours, p), (theirs, q) in zip(net.named_parameters(), one.named_parameters(), strict=True):
            assert ours == theirs
            if q.grad is not None:
                worst.append((full_tensor(p.grad) - q.grad).abs().max() / (1 + q.grad.abs().max()))
        made = unshard(net, thin)
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), one.parameters(), strict=True))
        assert torch.equal(made(x, *rest), one.eval()(x, *rest))
        whole, own = one.state_dict(), net.state_dict()
        net.load_state_dict({k: from_rows(v[own_rows(own[k])], own[k]) for k, v in whole.items()})
        assert all(torch.equal(full_tensor(p), whole[k]) for k, p in net.state_dict().items())
    return {"worst": torch.stack(worst).max()}


def topologies():
    """Checkpoints saved again by these processes: HOW lists of each run what it starts from and a kind of processes."""
    as_launched()
    folder = Path(os.environ["FOLDER"])
    for start, kind in (pair.split(":") for pair in os.environ["HOW"].split()):
        saved_again(folder, start, kind)
    return {"done": torch.tensor(True)}
