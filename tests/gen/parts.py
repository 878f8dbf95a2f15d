"""What each process of a test of tests/gen/test_distributed.py computes: every family, whole and in parts."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from gen.config.errors import UserError
from gen.config.spec import find
from gen.training.distributed import distribute_like, full_tensor, meta_copy, shard, unshard
from tests.models.test_families import FAMILIES, digits, inputs, random_net

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


def cut(given, own):
    return given[own] if isinstance(given, torch.Tensor) else {k: v[own] for k, v in given.items()}


def everything():
    count, rank, mesh = dist.get_world_size(), dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    worst = []
    for name in [*FAMILIES, "text", "fused"]:
        made = {"text": text, "fused": fused}.get(name)
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
        net.load_state_dict(distribute_like(one.state_dict(), net.state_dict()))
    return {"worst": torch.stack(worst).max()}
