"""Diffu-GRPO: its gradient is that of the expected reward, its pull a divergence, its estimates count every token."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.distillers.diffu_grpo import DiffuGRPO, Rollout, clipped_loss, log_probabilities, views
from gen.distillers.rewards.correct import Correct
from gen.text.decoding import Decoding
from gen.training.log import read_metrics
from gen.training.objectives.lib.masked import TokenBatch
from gen.training.trainer import train
from tests.distill.texts import LISTS, Given, roles, texts, tiny_text

WORDS, LENGTH, MASK = 3, 2, 3
ANSWERS = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))  # all of them, [9, 2]


def table(seed=0):
    """A network that predicts each position by itself: the joint of its answers is the product."""
    generator = torch.Generator().manual_seed(seed)
    return Given(torch.randn(LENGTH, WORDS + 1, generator=generator, dtype=torch.float64), MASK)


def written(x, prompt=0, end=LENGTH):
    n = x.shape[1]
    trained = ((torch.arange(n) >= prompt) & (torch.arange(n) < end)).expand(x.shape)
    tokens = TokenBatch(x, trained, torch.full((len(x),), end))
    return Rollout(tokens, torch.full((len(x),), prompt), torch.zeros(len(x), dtype=torch.float64))


def of_answers(net, answers):
    """The estimated log-probability of each token of some answers."""
    given = written(answers)
    masked = views(DiffuGRPO(prompt_mask=0.0), net, given, texts(answers, 0, LENGTH), 0)
    return log_probabilities(net, given.tokens, masked), given.tokens


def test_the_gradient_is_that_of_the_expected_reward():
    """Over all groups of two answers that the policy may write, by their probability: (G - 1) / G of it per token."""
    net, reward = table(), torch.linspace(-1, 2, len(ANSWERS), dtype=torch.float64).sin()
    joint = of_answers(net, ANSWERS)[0].sum(1).exp()
    torch.testing.assert_close(joint.sum(), torch.ones((), dtype=torch.float64))
    (exact,) = torch.autograd.grad((joint * reward).sum(), net.table)
    total = torch.zeros_like(exact)
    for pair in itertools.product(range(len(ANSWERS)), repeat=2):
        rows = list(pair)
        log_prob, tokens = of_answers(net, ANSWERS[rows])
        advantage = reward[rows] - reward[rows].mean()
        loss, logs = clipped_loss(log_prob, log_prob.detach(), None, advantage, tokens, 0.5, 0.0)
        assert float(logs["ratio"]) == 1 and float(logs["clip_fraction"]) == 0  # the first update
        total += joint[rows].prod().detach() * torch.autograd.grad(loss, net.table)[0]
    torch.testing.assert_close(total, -exact / 2 / LENGTH, rtol=1e-10, atol=1e-12)


def test_the_pull_to_the_reference_is_the_divergence():
    """E[e^d - d - 1] = KL(policy || reference), summed over every answer; its value is 0 where they agree."""
    net, other = table(), table(1)
    log_prob, tokens = of_answers(net, ANSWERS)
    reference = of_answers(other, ANSWERS)[0].detach()
    joint, zero = log_prob.sum(1).exp().detach(), torch.zeros(len(ANSWERS), dtype=torch.float64)
    kl = (joint * (log_prob - reference).sum(1)).sum()
    parts = [
        clipped_loss(
            log_prob[[i]], log_prob[[i]].detach(), reference[[i]], zero[[i]],
            TokenBatch(*(t[[i]] for t in (tokens.x, tokens.trained, tokens.length))), 0.5, 1.0,
        )[0]
        for i in range(len(ANSWERS))
    ]  # fmt: skip
    torch.testing.assert_close((joint * torch.stack(parts)).sum() * LENGTH, kl, rtol=1e-10, atol=1e-12)
    same = clipped_loss(log_prob, log_prob.detach(), log_prob.detach(), zero, tokens, 0.5, 1.0)[0]
    assert float(same.detach()) == 0


def test_the_ratio_is_clipped_on_the_side_that_the_advantage_pushes_it_to():
    log_prob = torch.tensor([[0.0], [0.0], [0.0], [0.0]], dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor([[2.0], [2.0], [0.4], [0.4]], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    tokens = written(torch.zeros(4, 1, dtype=torch.int64), end=1).tokens
    loss, logs = clipped_loss(log_prob, -ratio.log(), None, advantage, tokens, 0.5, 0.0)
    assert float(loss.detach()) == pytest.approx((-1.5 + 2.0 - 0.4 + 0.5) / 4)
    (grad,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(grad[:, 0], torch.tensor([0.0, 2.0, -0.4, 0.0]).double() / 4)
    assert float(logs["clip_fraction"]) == 1 and float(logs["ratio_off"]) == 1


def test_every_token_of_an_answer_is_predicted_where_it_is_masked():
    x = torch.arange(3).repeat(40, 3)[:, :8]
    given, batch = written(x, prompt=3, end=7), texts(x, 3, 7)
    net = Given(torch.zeros(8, MASK + 1), MASK)
    (alone,) = views(DiffuGRPO(prompt_mask=0.5), net, given, batch, 0)
    (other,) = views(DiffuGRPO(prompt_mask=0.5), net, given, batch, 1)
    hidden = alone.noisy == MASK
    assert bool(hidden[:, 3:7].all()) and not bool(hidden[:, 7:].any())
    assert 0.3 < float(hidden[:, :3].double().mean()) < 0.7 and not torch.equal(alone.noisy, other.noisy)
    coupled = views(DiffuGRPO(estimate="coupled"), net, given, batch, 0)
    masked = torch.stack([view.noisy == MASK for view in coupled])[:, :, 3:7]
    weights = torch.stack([view.weight for view in coupled])[:, :, 3:7]
    assert bool(masked[0].all()) and bool((masked[1] ^ masked[2]).all())
    assert not bool(torch.stack([view.noisy == MASK for view in coupled])[:, :, :3].any())
    assert bool((weights[1:] > 0).eq(masked[1:]).all()) and bool((weights[0] == 0.5).all())
    share = 0.2 + 0.6 * batch.noise.uniform("share.0")
    expected = torch.where(masked[1], 0.5 / share[:, None], 0.5 / (1 - share[:, None]))
    torch.testing.assert_close(weights[1:].sum(0), expected)


@dataclass(frozen=True)
class Even:
    """Whether an answer's first token is even."""

    def __call__(self, x, cond):
        return (x.gather(1, cond["prompt"][:, None])[:, 0] % 2 == 0).double()

    def features(self, x):
        return x.double()


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 4])
def test_answers_become_better(tmp_path, block_size):
    """A network in blocks sees the clean ones before each."""
    model = {**tiny_text().model.__dict__, "name": "text", "block_size": block_size}
    objective = {} if block_size is None else {"objective": "bd3"}
    train(tiny_text(model=model, ema=(), **objective), tmp_path / "weak", quiet=True)
    spec = DiffuGRPO(Even(), group_size=8, updates=2, beta=0.01)
    assert DiffuGRPO().student(tiny_text(), tmp_path / "weak", tmp_path).objective.reward == Correct(LISTS)
    changes = {"steps": 12, "batch_size": 64, "optim.lr": 5e-3, "log_every": 1}
    done = gen.distill(spec, tmp_path / "weak", tmp_path / "student", changes=changes, quiet=True)
    lines = [line for line in read_metrics(done.folder / "metrics.jsonl") if line["split"] == "train"]
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2 and lines[0]["ratio_off"] > 0
    assert len(gen.load(done.folder).generate("copy : a b =", 4).texts) == 1


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(UserError, match=r"Correct: the data, NoneType, have no right\(prompt, answer\)"):
        Correct()(torch.zeros(1, 2), {})
    with pytest.raises(UserError, match=r"rollout.sampling.temperature = 0; all answers of a group would be one"):
        DiffuGRPO(rollout=Decoding())
    assert list(DiffuGRPO(beta=0.0).roles(table(), None)) == ["net"]
    with pytest.raises(UserError, match="group_size = 3 does not divide the 4 samples"):
        next(DiffuGRPO(group_size=3, beta=0.0)(roles(table()), texts(torch.zeros(4, 2, dtype=torch.int64), 1, 2)))
