"""Several texts in one window: each has the loss that it has alone, and no gradient comes from another one."""

from types import SimpleNamespace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.diffusion.noise import Noise, sample_seeds
from gen.text.documents import document_positions, document_starts
from gen.text.mask_path import LogLinear
from gen.training.objectives import Batch
from gen.training.objectives.bd3 import BD3
from gen.training.objectives.cart import Cart
from gen.training.objectives.fast_dllm import FastDLLM
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, text_uniforms, token_batch
from gen.training.objectives.llada import LLaDA
from gen.training.objectives.mdlm import MDLM

STOP, MASK, LENGTH = 8, 9, 32
SIZES = [((6, 2), (11, 3), (3, 0)), ((14, 1), (7, 7), (2, 1))]  # tokens of each text and of its prompt, by window
OBJECTIVES = [MDLM(), LLaDA(), BD3(), FastDLLM(), Cart()]


def window(sizes, packing=4):
    """Texts of random words, each with its end and on a multiple of `packing`."""
    draw = torch.Generator().manual_seed(sum(n for n, _ in sizes))
    x, given, documents = (torch.full((LENGTH,), fill) for fill in (STOP, True, len(sizes)))
    at = 0
    for number, (n, prompt) in enumerate(sizes):
        share = slice(at, at + -(-(n + 1) // packing) * packing)
        if share.stop > LENGTH:
            break
        x[at : at + n] = torch.randint(STOP, (n,), generator=draw)
        given[share], documents[share] = torch.arange(at, share.stop) < at + prompt, number
        at = share.stop
    return x, given, documents


def batch_of(packing=4, seed=0):
    x, given, documents = (torch.stack(each) for each in zip(*(window(s, packing) for s in SIZES), strict=True))
    return Batch(x, {"given": given, "document": documents}, Noise(tuple(sample_seeds(seed, len(x)))))


def network(block_size, shift=0):
    torch.manual_seed(0)
    fields = {"vocab_size": 10, "mask_token_id": MASK, "eos_token_ids": (STOP,), "length": LENGTH}
    spec = build("models", "text", width=16, depth=2, heads=2, block_size=block_size, shift=shift, **fields)
    return torch.nn.Module.double(spec.build())


def shares(tokens):
    """Window, first and last position of each document that is trained."""
    for i, row in enumerate(tokens.documents):
        for number in row[tokens.trained[i]].unique().tolist():
            where = (row == number).nonzero()[:, 0]
            yield i, number, int(where[0]), int(where[-1]) + 1


def test_documents_are_counted_from_their_starts():
    documents = torch.tensor([[0, 0, 1, 1, 1, 3], [2, 2, 2, 2, 2, 2]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert document_starts(documents).sum(1).tolist() == [3, 1]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_a_window_of_texts_costs_what_its_texts_cost_alone(objective, block_size, shift):
    net, batch = network(block_size, shift), batch_of()
    roles = {"net": SimpleNamespace(net=net, path=LogLinear())}
    tokens, t, u = token_batch(batch, net), objective.times(net, batch, False), objective.mask_uniforms(batch)
    losses, masked, _ = objective.losses(roles, tokens, t, u)
    copies, alone, counts = len(losses) // len(batch.x), torch.zeros_like(losses), []
    for i, number, first, stop in shares(tokens):
        one = slice(first, stop)
        by_text = isinstance(objective, (MDLM, LLaDA, Cart))
        times = [number] if by_text else slice(first // 4, -(-stop // 4)) if block_size else [0]
        text = TokenBatch(tokens.x[i : i + 1, one], tokens.trained[i : i + 1, one], torch.tensor([stop - first]))
        alone_t = t[i, times] if by_text else t[i, times][None]
        made = objective.losses(roles, text, alone_t, u[i : i + 1, one])
        alone.view(copies, *batch.x.shape)[:, i, one] = made[0]
        counts.append(int(text.trained.sum()))
        if isinstance(objective, LLaDA):
            counts[-1] = objective.reduce(made[0], text)
    assert len(counts) == 6 and int(masked.sum()) > 6
    torch.testing.assert_close(losses, alone, rtol=1e-10, atol=1e-12)
    expected = sum(counts) / 6 if isinstance(objective, LLaDA) else alone.sum() / sum(counts)
    torch.testing.assert_close(objective.reduce(losses, tokens), expected, rtol=1e-10, atol=1e-12)
    (_, loss, logs), *_ = objective(roles, batch)
    assert (
        bool(loss.isfinite()) and bool(objective.validate(roles, batch).isfinite()) and 0 < float(logs["masked"]) <= 1
    )


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("objective", OBJECTIVES[:4], ids=lambda o: type(o).__name__)
def test_no_gradient_comes_from_another_text(objective, block_size, shift):
    net, batch = network(block_size, shift), batch_of()
    embedded = []
    net.embed.register_forward_hook(lambda m, args, out: embedded.append(out) or out.retain_grad())
    roles, tokens = {"net": SimpleNamespace(net=net, path=LogLinear())}, token_batch(batch, net)
    t, u = objective.times(net, batch, False), torch.zeros_like(objective.mask_uniforms(batch))
    losses, _, _ = objective.losses(roles, tokens, t, u)  # every trained token is masked
    copies = len(losses) // len(batch.x)
    for i, _, first, stop in shares(tokens):
        per_window = losses.view(copies, *batch.x.shape)[0, i]
        (grad,) = torch.autograd.grad(per_window[first:stop].sum(), embedded[-1], retain_graph=True)
        seen = grad.abs().sum(-1).view(copies, len(batch.x), -1, LENGTH).sum((0, 2))  # noisy and clean halves
        assert float(seen[i, first:stop].sum()) > 0
        seen[i, first:stop] = 0
        assert float(seen.sum()) == 0


@pytest.mark.parametrize("block_size", [None, 4])
def test_what_fills_a_share_is_seen_as_behind_a_text_alone(block_size):
    """To the end of the block of its stop, or to a random position; the rest is padding and belongs to no text."""
    net = network(block_size)
    drawn = []
    for seed in range(60):
        tokens = token_batch(batch_of(16, seed), net)
        drawn.append([stop - first for i, _, first, stop in shares(tokens) if i == 0])
        assert bool((tokens.trained <= (tokens.documents <= 2)).all())
    ends = [set(each) for each in zip(*drawn, strict=True)]
    if block_size:
        assert ends[:2] == [{8}, {12}]
    else:
        assert ends[:2] == [set(range(7, 17)), set(range(12, 17))]


def test_random_lengths_are_for_one_text():
    net = network(None)
    with pytest.raises(UserError, match="random_length cuts windows of one text"):
        next(iter(LLaDA(random_length=0.5)({"net": SimpleNamespace(net=net, path=LogLinear())}, batch_of())))


def test_every_objective_of_masked_texts_is_tested_here():
    masked = {type(build("training.objectives", name)) for name in names("training.objectives") if find_masked(name)}
    assert masked == {type(objective) for objective in OBJECTIVES}


def find_masked(name):
    owner = find(name, "training.objectives")
    return isinstance(owner, type) and issubclass(owner, MaskedObjective)


def test_stratified_times_of_texts_lie_one_in_each_share():
    u = text_uniforms(batch_of(), True)
    assert u.shape == (2, LENGTH)
    assert ((u * 2).floor().long().sort(0).values == torch.tensor([[0], [1]])).all()
