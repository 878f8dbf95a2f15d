"""Bounds of likelihood: exact on exact joints, above the truth elsewhere, and as wide as they say."""

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.likelihood import greedy_matches, nll_bounds
from gen.models.text import Text
from gen.text.decoding import Decoding
from gen.text.loop import decode
from gen.text.mask_path import LogLinear
from gen.text.worlds import JointDistribution, parity_joint, replace_joint
from gen.training.objectives.bd3 import BD3, logits_after_clean_blocks
from gen.training.objectives.lib.masked import TokenBatch
from gen.training.objectives.mdlm import MDLM


def tilted(n=5, words=3, block_size=None, seed=0):
    """A joint of all texts of n tokens, no two positions independent."""
    texts = torch.tensor(list(itertools.product(range(words), repeat=n)))
    weight = torch.rand(len(texts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return JointDistribution(texts, weight / weight.sum(), words, block_size=block_size)


def texts_of(joint, k):
    rows = range(0, len(joint.support), max(1, len(joint.support) // k))
    return joint.support[rows].tolist(), (-joint.probabilities[rows].log()).tolist()


@pytest.mark.parametrize("block_size", [None, 1, 2, 3, 5])
def test_all_masks_of_an_exact_model_are_its_likelihood(block_size):
    joint = tilted(block_size=block_size)
    texts, true = texts_of(joint, 12)
    bounds = nll_bounds(joint, [[]] * len(texts), texts, samples=32)
    assert [bound.nats for bound in bounds] == pytest.approx(true, abs=1e-12)
    assert {bound.se for bound in bounds} == {0}
    assert {len(bound.blocks) for bound in bounds} == {1 if block_size is None else -(-5 // block_size)}
    if block_size == 2:  # each block given those before it
        first = joint.probabilities[(joint.support[:, :2] == torch.tensor(texts[1][:2])).all(1)].sum()
        assert bounds[1].blocks[0].value == pytest.approx(-math.log(first), abs=1e-12)


@pytest.mark.parametrize("block_size", [None, 4])
def test_sampled_masks_are_right_in_the_mean_and_as_wide_as_they_say(block_size):
    joint = tilted(n=6, words=2, block_size=block_size)
    texts, true = texts_of(joint, 4)
    texts, true = texts * 100, true * 100
    bounds = nll_bounds(joint, [[]] * len(texts), texts, samples=8, seed=3)
    error = math.sqrt(sum(bound.se**2 for bound in bounds)) / len(bounds)
    assert abs(sum(b.nats - t for b, t in zip(bounds, true, strict=True)) / len(bounds)) < 4 * error
    spread = sum((b.nats - t) ** 2 for b, t in zip(bounds, true, strict=True)) / len(bounds)
    assert spread == pytest.approx(sum(bound.se**2 for bound in bounds) / len(bounds), rel=0.25)


@dataclass
class Biased:
    """Conditionals of no joint: those of one, sharpened, so that the order matters."""

    joint: JointDistribution
    block_size = None
    shift = 0
    eos_token_ids = ()

    def __getattr__(self, name):
        return getattr(self.joint, name)

    def __call__(self, tokens, lengths=None, positions=None, **cached):
        return 1.7 * self.joint(tokens, lengths, positions)


def test_of_a_model_without_a_joint_it_is_the_mean_over_orders_and_above_the_mixtures():
    model = Biased(tilted(n=4, words=2))
    for text in ([0, 1, 1, 0], [1, 1, 1, 1]):
        costs = []
        for order in itertools.permutations(range(4)):
            canvas, cost = torch.full((1, 4), 2), 0.0
            for i in order:
                logp = model(canvas).index_fill(-1, torch.tensor([2]), -torch.inf).log_softmax(-1)
                cost -= float(logp[0, i, text[i]])
                canvas[0, i] = text[i]
            costs.append(cost)
        (bound,) = nll_bounds(model, [[]], [text], samples=16)
        assert bound.nats == pytest.approx(sum(costs) / 24, abs=1e-12)
        assert bound.nats > -math.log(sum(math.exp(-cost) for cost in costs) / 24) + 1e-3


def toy(**changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 7, "length": 16, "width": 16, "depth": 2, "heads": 2, "mask_token_id": 6}
    return Text(**settings | {"eos_token_ids": (5,)} | changes).build().eval()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_block_is_scored_as_it_is_trained(shift):
    net, text, block = toy(block_size=2, shift=shift), [0, 3, 1, 4], 2
    tokens = TokenBatch(torch.tensor([text]), torch.ones(1, 4, dtype=torch.bool), torch.tensor([4]))
    total = 0.0
    for start, masked in itertools.product((0, 2), ((0,), (1,), (0, 1))):
        noisy, at = torch.tensor([text]), [start + i for i in masked]
        noisy[0, at] = 6
        logits = logits_after_clean_blocks(net, noisy, tokens, block).index_fill(-1, torch.tensor([6]), -torch.inf)
        cost = -logits.log_softmax(-1)[0, at, [text[i] for i in at]].sum().detach()
        total += float(cost) / (len(at) * math.comb(2, len(at)))
    (bound,) = nll_bounds(net, [[]], [text], samples=4)
    assert bound.nats == pytest.approx(total, rel=1e-5)
    (after,) = nll_bounds(net, [text[:1]], [text[1:]], samples=4)  # a prompt that ends within a block
    assert [block.n for block in after.blocks] == [1, 3]


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_bound_depends_on_its_text_and_seed_alone(block_size):
    net = toy(block_size=block_size)
    prompts, texts = [[0, 1], [2], [3, 3, 3]], [[1, 2, 3, 4, 0, 1, 2, 3, 4], [4], [0, 1, 2, 0, 1, 2, 0, 1]]
    many = nll_bounds(net, prompts, texts, samples=12, seed=[1, 2, 3], batch_size=5)
    for i in range(3):
        (one,) = nll_bounds(net, [prompts[i]], [texts[i]], samples=12, seed=[i + 1])
        assert [b.value for b in one.blocks] == pytest.approx([b.value for b in many[i].blocks], rel=1e-5)
        assert sum(one.lengths) == len(texts[i])
    assert nll_bounds(net, prompts, texts, samples=12, seed=9)[0].nats != many[0].nats


def test_impossible_texts_have_no_likelihood():
    joint = parity_joint(8)
    (exact,) = nll_bounds(parity_joint(3), [[]], [[1, 0, 0]])
    (drawn,) = nll_bounds(joint, [[]], [[1] + [0] * 7], samples=64)
    assert exact.nats == drawn.nats == drawn.se == math.inf
    assert nll_bounds(joint, [], []) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"samples": 7}, "must be even"), ({"samples": 0}, "samples"), ({"texts": [[2, 0]]}, "without the mask's")],
)
def test_what_cannot_be_bounded_is_refused(changes, told):
    arguments = {"texts": [[0, 1]], "samples": 4} | changes
    with pytest.raises(UserError, match=told):
        nll_bounds(parity_joint(2), [[]], **arguments)


def test_greedy_texts_are_those_that_decoding_writes():
    net, prompts = toy(), [[0, 1], [2, 3, 1], [4]]
    how = Decoding(policy="topk", stopping_rules=())
    decoded = decode(net, prompts, [3, 5, 4], how)
    texts = [decoded.text(i).tolist() for i in range(3)]
    assert greedy_matches(net, prompts, texts) == [True] * 3
    other = [*texts[1][:-1], (texts[1][-1] + 1) % 5]
    assert greedy_matches(net, prompts, [texts[0], other, texts[2]], batch_size=2) == [True, False, True]
    assert greedy_matches(replace_joint(3), [[], [], []], [[0, 1, 3], [3, 1, 2], []]) == [True, False, True]


@pytest.mark.parametrize(("objective", "block_size"), [(MDLM(eps=0.0), None), (BD3(clip=(0.0, 1.0)), 3)])
def test_the_bound_is_what_the_objectives_estimate(objective, block_size):
    net, text, n = toy(block_size=block_size), [0, 3, 1, 4, 2], 16384
    x = torch.tensor([text]).expand(n, -1)
    tokens = TokenBatch(x, torch.ones(x.shape, dtype=torch.bool), torch.full((n,), len(text)))
    roles = {"net": SimpleNamespace(net=net, path=LogLinear(0.0))}
    g = torch.Generator().manual_seed(0)
    u = torch.rand(n, 7, generator=g, dtype=torch.float64)
    t = (torch.arange(n, dtype=torch.float64)[:, None] + u[:, :2]) / n  # stratified: 1 / t has a long tail
    t = t[:, 0] if block_size is None else torch.stack([t[:, 0], t[torch.randperm(n, generator=g), 1]], 1)
    with torch.no_grad():
        losses = objective.losses(roles, tokens, t, u[:, 2:])[0].sum(1).double()
    (bound,) = nll_bounds(net, [[]], [text], samples=32)
    assert float(losses.mean()) == pytest.approx(bound.nats, rel=0.02)
