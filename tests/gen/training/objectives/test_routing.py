"""The balance of experts: its formula, what it adds to the losses of text, however a batch is cut."""

from types import SimpleNamespace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.diffusion.noise import Noise, sample_seeds
from gen.text.mask_path import LogLinear
from gen.training.objectives import Batch
from gen.training.objectives.lib.masked import token_batch
from gen.training.objectives.lib.routing import imbalance, recorded_routers, routers
from tests.gen.training.objectives.test_documents import LENGTH, MASK, OBJECTIVES, STOP, batch_of, network

EXPERTS = {"count": 6, "top_k": 2, "hidden": 8, "dense": 1}


def mixture(block_size=None, **experts):
    torch.manual_seed(0)
    fields = {"vocab_size": 10, "mask_token_id": MASK, "eos_token_ids": (STOP,), "length": LENGTH, "width": 16}
    spec = build("models", "text", **fields, depth=3, heads=2, block_size=block_size, experts=EXPERTS | experts)
    net = torch.nn.Module.double(spec.build())
    for router in routers(net):
        torch.nn.init.normal_(router.weight)
    return net


def roles(net):
    return {"net": SimpleNamespace(net=net, path=LogLinear())}


def texts(n=4, first=0, total=None):
    draw = torch.Generator().manual_seed(5)
    x = torch.randint(STOP, (4, LENGTH), generator=draw)
    cond = {"prompt": torch.tensor([0, 3, 9, 1]), "length": torch.tensor([LENGTH, 20, 32, 7])}
    rows = slice(first, first + n)
    noise = Noise(tuple(sample_seeds(0, 4))[rows])
    return Batch(x[rows], {key: value[rows] for key, value in cond.items()}, noise, first=first, total=total)


def test_the_formula():
    draw = torch.Generator().manual_seed(0)
    documents = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]])
    scores = torch.rand(4, 8, 5, generator=draw, dtype=torch.float64)  # two copies of the batch, each text twice
    experts = scores.topk(2).indices
    found = imbalance([(experts, scores)], documents)
    for row, position in ((0, 1), (0, 3), (1, 0), (1, 2)):
        values = []
        for copy in (row, row + 2):
            where = (documents[row] == documents[row, position]).repeat(2)
            share = (scores / scores.sum(-1, keepdim=True))[copy, where].mean(0)
            chosen = torch.bincount(experts[copy, where].flatten(), minlength=5) / (2 * where.sum())
            values.append(5 * (chosen * share).sum())
        torch.testing.assert_close(found[row, position], torch.stack(values).mean())
    even = torch.eye(4).repeat(1, 2, 1)[:, :4] + 1
    assert imbalance([(torch.arange(4)[None, :, None], even)], torch.zeros(1, 4, dtype=torch.int64)).eq(1).all()
    one = torch.zeros(1, 4, 1, dtype=torch.int64)
    sure = torch.nn.functional.one_hot(one[..., 0], 4).double()
    assert imbalance([(one, sure)], one[..., 0]).eq(4).all()
    with pytest.raises(UserError, match="no router was called"):
        imbalance([], documents)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_every_loss_takes_the_imbalance_of_its_texts_however_they_are_cut(objective):
    """And of windows of several texts; validation does not."""
    f, weighted = roles(mixture(4 if objective.trains_blocks else None)), override(objective, {"balance": 0.3})
    for batch in (texts(), batch_of()):
        (plain, logs), (loss, more) = (next(iter(one(f, batch)))[1:] for one in (objective, weighted))
        added = float((loss - plain).detach())
        assert 0.3 < added < 0.3 * 6 and "imbalance" not in logs
        tokens = token_batch(batch, f["net"].net)
        if type(objective).__name__ != "LLaDA":  # whose loss is the mean over texts
            assert added == pytest.approx(0.3 * float(more["imbalance"]))
        torch.testing.assert_close(objective.validate(f, batch), weighted.validate(f, batch))
        assert tokens.texts.shape == batch.x.shape
    parts = [texts(1, 0, 4), texts(2, 1, 4), texts(1, 3, 4)]
    counts = torch.stack([weighted.count(f, part) for part in parts])
    losses = torch.stack([next(iter(weighted(f, part)))[1] for part in parts])
    whole = next(iter(weighted(f, texts(total=4))))[1]
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), whole, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_the_routers_with_checkpointed_blocks_too():
    grads = []
    for checkpointed in (False, True):
        net = mixture(score="sigmoid", normalised=True)
        for block in net.blocks:
            block.gradient_checkpointing = checkpointed
        weighted = override(OBJECTIVES[1], {"balance": 0.5})
        next(iter(weighted(roles(net), texts())))[1].backward()
        grads.append([p.grad for p in net.parameters()])
        assert all(not router._forward_hooks for router in routers(net))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_it_makes_the_experts_even():
    last = []
    for balance in (1e-9, 0.3):
        f, objective, seen = roles(mixture(dense=2)), override(OBJECTIVES[1], {"balance": balance}), []
        optimizer = torch.optim.Adam(f["net"].net.parameters(), lr=0.01)
        for _ in range(30):
            loss, logs = next(iter(objective(f, texts())))[1:]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(logs["imbalance"]))
        last.append(seen[-1])
    assert last[1] < min(last[0], seen[0]) - 0.1, (last, seen[0])


def test_networks_without_experts_and_in_blocks_are_refused():
    for objective in OBJECTIVES:
        with pytest.raises(UserError, match="this network has none"):
            override(objective, {"balance": 0.1}).roles(network(4 if objective.trains_blocks else None), None)
        with pytest.raises(UserError, match="balance"):
            override(objective, {"balance": -1.0})
        if objective.trains_blocks:
            assert objective.roles(network(4), None) and objective.roles(network(None), None)
        else:
            with pytest.raises(UserError, match=r"in blocks of 4: take bd3 or fast_dllm, or set model\.block_size"):
                objective.roles(network(4), None)
    with recorded_routers(None) as calls:
        mixture()(texts().x)
    assert not calls
