"""Losses of masked text against exact joints: the bound is tight for exact conditionals, token by token summed."""

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.noise import Noise, sample_seeds
from gen.kernels.attention import BlockDiffusion, attention
from gen.models.text import Text
from gen.text.mask_path import Cosine, LogLinear, Square
from gen.text.worlds import JointDistribution
from gen.training.objectives import Batch
from gen.training.objectives.bd3 import BD3, logits_after_clean_blocks
from gen.training.objectives.cart import Cart, context_weights
from gen.training.objectives.fast_dllm import FastDLLM
from gen.training.objectives.lib.masked import TokenBatch, stratify, token_batch, token_losses
from gen.training.objectives.llada import LLaDA
from gen.training.objectives.mdlm import MDLM

LENGTH, WORDS = 4, 3


def joint(seed=0, length=LENGTH, words=WORDS):
    """Every text of so many words, with random probabilities: full support."""
    texts = torch.tensor(list(itertools.product(range(words), repeat=length)))
    draws = torch.rand(len(texts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return JointDistribution(texts, draws / draws.sum(), words)


@dataclass
class Exact:
    """The exact conditionals as a network: each place answers by what it may see of its text, and by nothing else.

    Logits follow the calls of models/text.py. It counts the places that saw one place of the text twice.
    """

    world: JointDistribution
    block_size: int | None = None
    shift: int = 0
    twice: int = 0
    eos_token_ids = ()

    @property
    def mask_token_id(self):
        return self.world.mask_token_id

    def __call__(self, tokens, lengths=None, positions=None, *, documents=None, block_diffusion=None):
        b, n = tokens.shape
        if block_diffusion is None:
            out = self.world(tokens)
            return out if positions is None else out.gather(1, positions[..., None].expand(-1, -1, out.shape[-1]))
        out, index = [], torch.arange(n)
        seen = BlockDiffusion(n // 2, block_diffusion).allowed(index[:, None], index)
        for place in positions[0].tolist():
            query = place - self.shift if place else 0
            state = torch.full((b, self.world.support.shape[1]), self.mask_token_id)
            for key in range(n):
                if seen[query, key]:
                    there = key % (n // 2)
                    self.twice += int((state[:, there] != self.mask_token_id).any())
                    state[:, there] = tokens[:, key]
            out.append(self.world(state)[:, place % (n // 2)])
        return torch.stack(out, 1)


def roles(net, path=None):
    return {"net": SimpleNamespace(net=net, path=path)}


def whole(x):
    return TokenBatch(x, torch.ones_like(x, dtype=torch.bool), torch.full((len(x),), x.shape[1]))


def nodes(n=12, low=0.0, high=1.0):
    """Gauss-Legendre on [low, high]: exact for what is integrated here, polynomials of a degree below 2 n."""
    points, weights = np.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    return [(low + half * (float(p) + 1), half * float(w)) for p, w in zip(points, weights, strict=True)]


def patterns(length):
    return [torch.tensor(p, dtype=torch.float64) for p in itertools.product((0.0, 1.0), repeat=length)]


def probability(pattern, share):
    """Of a pattern of hits, 0 where a token is masked."""
    k = int((pattern == 0).sum())
    return share**k * (1 - share) ** (len(pattern) - k)


def expected(losses_at, share_of, x, length=LENGTH):
    """The exact expectation of a loss per token, over time and masks: [S, L]."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    for t, weight in nodes():
        for pattern in patterns(length):
            chance = probability(pattern, share_of(t))
            total += weight * chance * losses_at(torch.full((len(x),), t, dtype=torch.float64), pattern.expand(x.shape))
    return total


# The bound is the likelihood


@pytest.mark.parametrize("path", [LogLinear(eps=0.0), Square()], ids=repr)
def test_mdlm_of_exact_conditionals_is_the_likelihood_of_each_text(path):
    world = joint()
    made = expected(
        lambda t, hits: MDLM().losses(roles(world, path), whole(world.support), t, hits)[0],
        lambda t: float(path.masked_fraction(torch.tensor(t, dtype=torch.float64))),
        world.support,
    )
    torch.testing.assert_close(made.sum(1), -world.probabilities.log(), rtol=1e-10, atol=1e-10)
    assert float((world.probabilities * made.sum(1)).sum()) == pytest.approx(
        float(-(world.probabilities * world.probabilities.log()).sum())
    )


def test_llada_of_exact_conditionals_is_the_likelihood_of_each_text():
    world = joint(1)
    objective = LLaDA(eps=0.0)
    made = expected(
        lambda u, hits: objective.losses(roles(world), whole(world.support), u, hits)[0], lambda u: u, world.support
    )
    torch.testing.assert_close(made.sum(1), -world.probabilities.log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [1, 2, 3, 4, None])
def test_bd3_of_exact_conditionals_is_the_likelihood_for_every_block_size(block):
    """3 does not divide 4: the last block is shorter. All blocks share times and masks here, which no block sees."""
    world, path = joint(2), LogLinear(eps=0.0)
    net = Exact(world, block)
    size = block or LENGTH
    count = -(-LENGTH // size)
    made = torch.zeros(world.support.shape, dtype=torch.float64)
    for t, weight in nodes(4):
        for pattern in patterns(size):
            hits = pattern.repeat(count)[:LENGTH].expand(world.support.shape)
            times = torch.full((len(world.support), count), t, dtype=torch.float64)
            losses = BD3().losses(roles(net, path), whole(world.support), times, hits)[0]
            made += weight * probability(pattern, t) * losses
    torch.testing.assert_close(made.sum(1), -world.probabilities.log(), rtol=1e-10, atol=1e-10)
    assert net.twice == 0


def test_a_wrong_model_is_charged_more_than_the_entropy():
    world, other = joint(), joint(7)
    made = expected(
        lambda t, hits: MDLM().losses(roles(other, LogLinear(eps=0.0)), whole(world.support), t, hits)[0],
        lambda t: t,
        world.support,
    )
    divergence = float((world.probabilities * (world.probabilities / other.probabilities).log()).sum())
    entropy = float(-(world.probabilities * world.probabilities.log()).sum())
    assert float((world.probabilities * made.sum(1)).sum()) == pytest.approx(entropy + divergence, rel=1e-10)


def test_blocks_of_one_token_all_masked_are_next_token_prediction():
    world = joint(3)
    objective = BD3(clip=(1.0, 1.0), weight="one")
    batch = text_batch(world.support)
    f = roles(Exact(world, 1), LogLinear(eps=0.0))
    t = objective.times(f["net"].net, batch, stratified=True)
    losses = objective.losses(f, whole(world.support), t, objective.mask_uniforms(batch))[0]
    left = torch.zeros_like(losses)
    for i in range(LENGTH):  # -log p(x_i | x_<i), from sums over the joint
        same = [(world.support[:, None, :n] == world.support[None, :, :n]).all(-1).double() for n in (i, i + 1)]
        left[:, i] = (same[0] @ world.probabilities).log() - (same[1] @ world.probabilities).log()
    torch.testing.assert_close(losses, left, rtol=1e-10, atol=1e-10)


# Complementary copies


def text_batch(x, seed=0, **cond):
    noise = Noise(tuple(sample_seeds(seed, len(x))))
    return Batch(x, {k: torch.tensor(v) for k, v in cond.items()}, noise)


def test_two_copies_mask_every_trained_token_once():
    world, objective = joint(length=6), FastDLLM()
    x = world.support[:5]
    batch = text_batch(x, prompt=[0, 1, 2, 3, 0], length=[6, 6, 5, 4, 3])
    tokens = token_batch(batch, Exact(world, 4))
    noisy = objective.copies(Exact(world, 4), tokens, batch.noise.uniform("t", 2), objective.mask_uniforms(batch))
    hidden = (noisy == world.mask_token_id).view(2, *x.shape).sum(0)
    assert torch.equal(hidden, tokens.trained.long())
    assert torch.equal(torch.where(noisy == world.mask_token_id, x.repeat(2, 1), noisy), x.repeat(2, 1))
    alone = FastDLLM(complementary=False).copies(
        Exact(world, 4), tokens, batch.noise.uniform("t", 2), objective.mask_uniforms(batch)
    )
    assert torch.equal(alone, noisy[:5])


def test_a_pair_of_copies_costs_what_both_conditionals_say():
    """Of two tokens in one block, one is guessed from the other, and the other from nothing (or both from nothing)."""
    world = joint(4, length=2)
    f = roles(Exact(world, 2))
    x = world.support
    hits = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(x.shape)
    losses, masked, _ = FastDLLM(eps=0.0).losses(f, whole(x), torch.full((len(x), 1), 0.5, dtype=torch.float64), hits)
    table = torch.zeros(WORDS, WORDS, dtype=torch.float64)
    table[x[:, 0], x[:, 1]] = world.probabilities
    first = -(table / table.sum(0)).log()[x[:, 0], x[:, 1]]
    second = -(table / table.sum(1, keepdim=True)).log()[x[:, 0], x[:, 1]]
    torch.testing.assert_close(losses.view(2, -1, 2).sum((0, 2)), first + second, rtol=1e-12, atol=1e-12)
    assert bool((masked.view(2, -1, 2).sum(0) == 1).all())


# Who sees whom


@pytest.mark.parametrize(("length", "block"), [(6, 2), (5, 2), (4, 1), (4, 4)])
def test_the_mask_of_block_diffusion_is_its_three_rules(length, block):
    index = torch.arange(2 * length)
    mask = BlockDiffusion(length, block).allowed(index[:, None], index)
    for q, k in itertools.product(range(2 * length), repeat=2):
        clean_q, clean_k, bq, bk = q >= length, k >= length, q % length // block, k % length // block
        diagonal = bq == bk and not clean_q and not clean_k
        offset = not clean_q and clean_k and bq > bk
        causal = clean_q and clean_k and bq >= bk
        assert bool(mask[q, k]) == (diagonal or offset or causal)


class Attending(nn.Module):
    """Two layers of plain attention upon embeddings that can be asked for their gradient."""

    mask_token_id, eos_token_ids = WORDS, ()

    def __init__(self, length=LENGTH, block=2, shift=0):
        super().__init__()
        torch.manual_seed(0)
        self.block_size, self.shift, self.eos_token_ids = block, shift, ()
        self.embed = nn.Embedding(WORDS + 1, 8, dtype=torch.float64)
        self.places = nn.Embedding(length, 8, dtype=torch.float64)
        self.layers = nn.ModuleList(nn.Linear(8, 24, dtype=torch.float64) for _ in range(2))
        self.head = nn.Linear(8, WORDS + 1, dtype=torch.float64)

    def forward(self, tokens, lengths=None, positions=None, *, documents=None, block_diffusion=None, mask=None):
        index = torch.arange(tokens.shape[1])
        self.given = self.embed(tokens).detach().requires_grad_() + 0 * self.embed.weight.sum()
        self.given.retain_grad()
        h = self.given + self.places(index if block_diffusion is None else index % (len(index) // 2))
        if block_diffusion is not None:
            mask = BlockDiffusion(len(index) // 2, block_diffusion).allowed(index[:, None], index)
            mask = mask if documents is None else mask & (documents[..., None] == documents[:, None])
        elif mask is None and lengths is not None:
            mask = (index < lengths[:, None])[:, None].expand(-1, len(index), -1)
        for layer in self.layers:
            q, k, v = layer(h).chunk(3, -1)
            h = h + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.head(h)
        positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1) if positions is None else positions
        positions = (positions - self.shift).clamp(min=0)
        return out.gather(1, positions[..., None].expand(-1, -1, out.shape[-1]))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("objective", [BD3(), FastDLLM()], ids=["bd3", "fast_dllm"])
def test_no_noisy_block_sees_its_own_clean_tokens_or_later_ones(objective, shift):
    n, block = 6, 2
    net = Attending(n, block, shift)
    x = torch.randint(WORDS, (3, n), generator=torch.Generator().manual_seed(0))
    batch = text_batch(x)
    tokens = token_batch(batch, net)
    seen = []
    for b in range(3):
        u = torch.full((3, 3), 0.7, dtype=torch.float64)
        losses, masked, _ = objective.losses(roles(net, LogLinear()), tokens, u, objective.mask_uniforms(batch))
        here = losses[:, b * block : (b + 1) * block]
        assert bool(masked[:, b * block : (b + 1) * block].any())
        (grad,) = torch.autograd.grad(here.sum(), net.given)
        noisy, clean = grad.abs().sum((0, 2)).view(2, 3, block).sum(-1)
        assert float(clean[b:].sum()) == 0
        assert float(noisy[:b].sum()) == 0 and float(noisy[b + 1 :].sum()) == 0
        seen.append(float(clean[:b].sum()))
    assert seen[0] == 0 and seen[1] > 0 and seen[2] > 0


def test_the_first_token_of_a_block_comes_from_the_clean_place_before_it():
    net = Attending(4, 2, shift=1)
    x = torch.tensor([[0, 1, 2, 0]])
    noisy = torch.tensor([[WORDS] * 4])
    out = logits_after_clean_blocks(net, noisy, whole(x), 2)
    net.block_size = None
    causal = torch.arange(4)[:, None] // 2 >= torch.arange(4) // 2
    alone = net(torch.cat([x[:, :2], noisy[:, 2:]], 1), mask=causal)
    torch.testing.assert_close(out[:, 2:], alone[:, 2:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [BD3(), FastDLLM()], ids=["bd3", "fast_dllm"])
@pytest.mark.parametrize("length", [300, 290], ids=["whole", "padded"])
def test_a_long_text_costs_what_it_costs_under_a_mask_of_n_times_n(objective, length, monkeypatch):
    """The loss and every gradient: the rule is followed tile by tile, recomputed in the backward pass."""
    torch.manual_seed(0)
    net = Text(vocab_size=9, mask_token_id=8, eos_token_ids=(7,), length=300, width=16, depth=2, heads=2, block_size=8)
    net = net.build().double()
    batch = text_batch(torch.randint(7, (2, 300)), length=[length, 300])
    answers = []
    for kernel in (attention, attention.only("dense")):
        monkeypatch.setattr("gen.models.layers.text.attention", kernel)
        ((_, loss, _),) = list(objective(roles(net, LogLinear()), batch))
        answers.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    assert attention.explain(*torch.zeros(3, 1, 600, 2, 8), BlockDiffusion(300, 8))["tiles"] == "chosen"
    for ours, dense in zip(*answers, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-12)


def test_a_token_counts_by_what_is_shown_near_it():
    shown = torch.tensor([[True, False, False, True, True, False], [False] * 6])
    documents, p = torch.zeros(2, 6, dtype=torch.int64), 0.3
    weights = context_weights(shown, documents, p)
    for i in range(6):
        wanted = sum(0.5 * p * (1 - p) ** (abs(i - j) - 1) for j in range(6) if shown[0, j] and j != i)
        assert float(weights[0, i]) == pytest.approx(wanted)
    assert not weights[1].any() and not context_weights(shown[:, :1], documents[:, :1], 0.3).any()
    far = torch.zeros(1, 500, dtype=torch.bool)
    far[0, 0] = True
    weights = context_weights(far, torch.zeros(1, 500, dtype=torch.int64), 0.3)[0]
    assert float(weights[1]) == pytest.approx(0.15) and float(weights[400]) == 0


@pytest.mark.parametrize(
    "objective", [MDLM(), LLaDA(), BD3(), FastDLLM(), Cart()], ids=["mdlm", "llada", "bd3", "fast_dllm", "cart"]
)
def test_padding_and_prompts_cost_nothing_and_padding_is_not_seen(objective):
    f = roles(Attending(6, 2), LogLinear())
    x = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % WORDS  # in the middle of a block
    made = []
    for tokens in (x, other):
        batch = text_batch(tokens, prompt=[1, 2, 0, 3], length=[5, 5, 4, 5])
        (step,) = list(objective(f, batch))
        made.append((step[1], objective.validate(f, batch)))
        assert math.isfinite(float(step[1].detach()))
        assert float(step[2]["masked"]) > 0 and 0 <= float(step[2]["accuracy"]) <= 1
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    changed = x.clone()
    changed[:, 0] = (changed[:, 0] + 1) % WORDS  # the prompt is seen, and so it matters
    batch = text_batch(changed, prompt=[1, 2, 0, 3], length=[5, 5, 4, 5])
    assert not torch.equal(objective.validate(f, batch), made[0][1])


# Numbers


class Uniform:
    """Knows nothing of three words and a mask."""

    mask_token_id, block_size, shift, eos_token_ids = 3, None, 0, ()

    def __call__(self, tokens, lengths=None, positions=None, **how):
        return torch.zeros(*(tokens if positions is None else positions).shape, 4, dtype=torch.float64)


def test_lladas_loss_by_hand():
    """Uniform logits: log 4 for each masked token, over p, over the answer's length."""
    net = Uniform()
    x = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    batch = text_batch(x, prompt=[2, 0], length=[5, 4])
    objective = LLaDA()
    (role, loss, logs), *_ = objective(roles(net), batch)
    p = (1 - 1e-3) * batch.noise.uniform("t") + 1e-3
    hit = batch.noise.uniform("mask", 5) < p[:, None]
    k = [int(hit[0, 2:].sum()), int(hit[1, :4].sum())]
    assert role == "net" and sum(k) > 0
    by_hand = (k[0] * math.log(4) / p[0] / 3 + k[1] * math.log(4) / p[1] / 4) / 2
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(logs["masked"]) == pytest.approx(sum(k) / 7)


def test_mdlms_loss_by_hand():
    """The mask token gets no probability, so uniform logits cost log 3."""
    net = Uniform()
    x = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    batch, path = text_batch(x, prompt=[2, 0], length=[5, 4]), Cosine()
    (_, loss, _), *_ = MDLM()(roles(net, path), batch)
    t = (1 - 1e-3) * stratify(batch.noise.uniform("t"), batch) + 1e-3
    hit = batch.noise.uniform("mask", 5) < path.masked_fraction(t)[:, None]
    weighted = hit[0, 2:].sum() * path.weight(t)[0] + hit[1, :4].sum() * path.weight(t)[1]
    assert float(loss) == pytest.approx(float(math.log(3) * weighted / 7), rel=1e-12)


def test_the_losses_of_blocks_by_hand():
    net, path = Uniform(), Square()
    net.block_size = 2
    x = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    batch = text_batch(x, prompt=[2, 0], length=[5, 4])
    trained = token_batch(batch, net).trained
    (_, loss, logs), *_ = BD3(clip=(0.2, 0.8))(roles(net, path), batch)
    t = 0.2 + 0.6 * stratify(batch.noise.uniform("t", 3), batch)[:, [0, 0, 1, 1, 2]]
    hit = (batch.noise.uniform("mask", 5) < path.masked_fraction(t)) & trained
    assert float(loss) == pytest.approx(float(math.log(3) * (path.weight(t) * hit).sum() / 7), rel=1e-12)
    assert float(logs["masked"]) == pytest.approx(float(hit.sum()) / 7)
    (_, loss, logs), *_ = FastDLLM()(roles(net), batch)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-12) and float(logs["masked"]) == 1


def test_stratified_numbers_lie_one_in_each_share():
    u, whole = torch.rand(3, 4, dtype=torch.float64), text_batch(torch.zeros(3, 6, dtype=torch.int64))
    made = stratify(u, whole)
    part = replace(whole, x=whole.x[1:], first=1, total=3)
    assert torch.equal(stratify(u[1:], part), made[1:])
    assert torch.equal((made * 12).floor().flatten(), torch.arange(12, dtype=torch.float64))
    torch.testing.assert_close(made * 12 % 1, u, rtol=0, atol=1e-12)


def test_the_clip_bounds_the_times_of_every_block():
    net, batch = Attending(6, 2), text_batch(torch.zeros(8, 6, dtype=torch.int64))
    t = BD3(clip=(0.3, 0.8)).times(net, batch, stratified=True)
    assert t.shape == (8, 3) and float(t.min()) >= 0.3 and float(t.max()) <= 0.8
    assert len(set(t.flatten().tolist())) == 24


def test_a_text_cut_short_keeps_its_prompt_and_a_token():
    objective = LLaDA(random_length=1.0)
    x = torch.zeros(64, 6, dtype=torch.int64)
    batch = text_batch(x, prompt=[2] * 64, length=[5] * 64)
    cut = objective.random_lengths(Uniform(), batch)
    assert set(cut.tolist()) == {3, 4, 5}
    assert torch.equal(LLaDA(random_length=0.0).random_lengths(Uniform(), batch), torch.full((64,), 5))
    share = (LLaDA(random_length=0.5).random_lengths(Uniform(), batch) < 5).double().mean()
    assert 0.1 < float(share) < 0.6


def test_losses_do_not_depend_on_the_batch():
    """Without strata a sample's masks are its own."""
    f = roles(Attending(6, 2), LogLinear())
    x = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(1))
    noise = Noise(tuple(sample_seeds(0, 4)))
    together = next(LLaDA()(f, Batch(x, {}, noise)))[1]
    alone = [next(LLaDA()(f, Batch(x[i : i + 1], {}, Noise(noise.seeds[i : i + 1]))))[1] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-12, atol=1e-12)


def test_low_precision_logits_are_widened():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    losses, _ = token_losses(logits, torch.zeros(2, 3, dtype=torch.int64), mask_token_id=3)
    assert losses.dtype == torch.float32
    by_hand = -logits[..., :3].float().log_softmax(-1)[..., 0]
    torch.testing.assert_close(losses, by_hand, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", [MDLM(), LLaDA(), BD3(), FastDLLM()], ids=["mdlm", "llada", "bd3", "fast_dllm"])
def test_a_network_without_a_mask_token_is_refused(objective):
    with pytest.raises(UserError, match="Linear has no mask token"):
        objective.roles(nn.Linear(2, 2), None)
    net = Attending()
    net.block_size = net.block_size if objective.trains_blocks else None
    assert objective.roles(net, None) == {"net": net}


class Wrapped(nn.Module):
    """As DistributedDataParallel hides a network's attributes."""

    def __init__(self, net):
        super().__init__()
        self.module = net

    def forward(self, *args, **how):
        return self.module(*args, **how)


@pytest.mark.parametrize("objective", [MDLM(), LLaDA(), BD3(), FastDLLM()], ids=["mdlm", "llada", "bd3", "fast_dllm"])
def test_a_wrapped_network_is_the_same_network(objective):
    net, batch = Attending(6, 2, shift=1), text_batch(torch.zeros(3, 6, dtype=torch.int64), prompt=[0, 1, 2])
    plain, hidden = (next(objective(roles(f, LogLinear()), batch))[1] for f in (net, Wrapped(net)))
    assert torch.equal(plain, hidden)
    net.block_size = net.block_size if objective.trains_blocks else None
    assert objective.roles(Wrapped(net), None)["net"].module is net


@pytest.mark.parametrize("objective", [MDLM(), BD3()], ids=["mdlm", "bd3"])
def test_a_path_of_numbers_is_refused(objective):
    from gen.diffusion.path import Flow

    with pytest.raises(UserError, match="path of masks"):
        next(objective(roles(Attending(), Flow()), text_batch(torch.zeros(2, 4, dtype=torch.int64))))


@pytest.mark.parametrize(
    "make",
    [lambda: MDLM(eps=1.0), lambda: LLaDA(random_length=2.0), lambda: BD3(clip=(0.8, 0.3)), lambda: FastDLLM(eps=-1.0)],
)
def test_settings_outside_their_range_are_refused(make):
    with pytest.raises(UserError, match=r"MDLM|LLaDA|BD3|FastDLLM"):
        make()
