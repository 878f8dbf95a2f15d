"""Exact joint distributions of short texts, and the exact distribution that a decoding policy makes of them.

A JointDistribution is a Predictor whose conditionals are exact, so a decoder's errors are its own: those of committing
tokens together that depend on one another. `decoded_distribution` sums over all that can happen, without a sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import name_of
from gen.text.contracts import DecodingPolicy, KvCache, RowState, Span, StepView

__all__ = [
    "DecodedDistribution",
    "JointDistribution",
    "decoded_distribution",
    "insert_joint",
    "parity_joint",
    "remove_joint",
    "replace_joint",
    "shuffle_joint",
]

N = TypeVar("N", int, float)
Text = tuple[int, ...]
Table = list[list[float]]  # marginals [L][V] of one text


@dataclass(frozen=True, eq=False)
class JointDistribution:
    """A discrete distribution of texts of one length, as a Predictor; the mask is token `n_words`.

    A canvas that agrees with no text of the support gets uniform predictions.

    Attributes:
        support: texts of tokens 0 .. n_words - 1, int64 [S, L].
        probabilities: float64 [S].
        n_words: number of tokens without the mask.
        offset: first position of the text on a canvas; what lies before it is ignored.
        eos_token_ids, block_size, shift: see gen.text.contracts.Predictor.
    """

    support: Tensor
    probabilities: Tensor
    n_words: int
    offset: int = 0
    eos_token_ids: tuple[int, ...] = ()
    block_size: int | None = None
    shift: int = 0

    @property
    def mask_token_id(self) -> int:
        return self.n_words

    @property
    def vocab_size(self) -> int:
        return self.n_words + 1

    @cached_property
    def one_hot(self) -> Tensor:
        return torch.nn.functional.one_hot(self.support, self.vocab_size).double()  # [S, L, V]

    def consistent_mass(self, states: Tensor) -> Tensor:
        """Return p(text, if it agrees with a partly masked text), [B, S], for states int64 [B, L]."""
        agrees = (states[:, None] == self.support) | (states[:, None] == self.mask_token_id)
        return agrees.all(-1) * self.probabilities

    def conditional(self, given: Sequence[int]) -> Tensor:
        """Return p(text | some of its tokens) of each text of the support, float64 [S].

        Args:
            given: the known tokens, the mask elsewhere; UserError where no text of the support has them.
        """
        known = torch.as_tensor(given, dtype=torch.int64)
        if known.shape != self.support.shape[1:] or not bool((mass := self.consistent_mass(known[None])[0]).any()):
            raise UserError(f"JointDistribution: no text has the tokens {list(given)}")
        return mass / mass.sum()

    def init_cache(self, rows: int, length: int) -> KvCache:
        return KvCache([], [], torch.zeros(rows, length + 1, dtype=torch.bool))

    def __call__(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        kv_cache: KvCache | None = None,
        span: Span | None = None,
    ) -> Tensor:
        n = self.support.shape[1]
        states = tokens[:, self.offset : self.offset + n]
        if states.shape[1] < n:
            states = torch.nn.functional.pad(states, (0, n - states.shape[1]), value=self.mask_token_id)
        mass = torch.einsum("bs,slv->blv", self.consistent_mass(states), self.one_hot)
        mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, torch.ones_like(mass))
        logits = mass.log()  # [B, L, V]
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        index = (positions - self.offset).clamp(0, n - 1)
        return logits.gather(1, index[..., None].expand(-1, -1, self.vocab_size))


@dataclass(frozen=True)
class DecodedDistribution:
    """Errors and cost of a policy on a joint distribution P, Q being the distribution of what is decoded.

    Attributes:
        success: Q of the support: the probability that the text is one of the joint's.
        total_variation: of P and Q.
        kl: KL(P || Q), nats.
        nfe: expected evaluations; a text that has left the support costs no more.
    """

    success: float
    total_variation: float
    kl: float
    nfe: float


def decoded_distribution(
    joint: JointDistribution,
    policy: DecodingPolicy,
    *,
    greedy: bool = False,
    over_orders: bool = False,
    given: Sequence[int] | None = None,
    max_steps: int = 1000,
) -> DecodedDistribution:
    """Compute the exact distribution of decoding the whole text as one window, tokens drawn at temperature 1.

    P is the joint, or with `given` its conditional distribution, as a prompt with gaps has it.

    Of a policy whose order depends on samples, all tokens that may be drawn are summed over; of one with
    `commit_probability(step)`, which commits each token by itself, all subsets.

    Args:
        joint: what is decoded.
        policy: UserError for one that takes tokens back or draws its own.
        greedy: take the likeliest tokens instead, for P's mode.
        over_orders: the policy ranks by uniform("order"), and all orders are averaged over.
        given: the text's tokens that are known, the mask elsewhere; None for nothing known.
        max_steps: RuntimeError for a policy that takes more.
    """
    n = joint.support.shape[1]
    start = (joint.mask_token_id,) * n if given is None else tuple(map(int, given))
    p = joint.probabilities if given is None else joint.conditional(start)
    orders: list[Text | None] = list(itertools.permutations(range(n))) if over_orders else [None]
    q, nfe = torch.zeros_like(p), 0.0
    for order in orders:
        rank = None if order is None else (torch.tensor(order, dtype=torch.float64) + 0.5) / n
        mass, spent = _Enumeration(joint, policy, start, rank, greedy).run(max_steps)
        q, nfe = q + mass / len(orders), nfe + spent / len(orders)
    total_variation = 0.5 * float((p - q).abs().sum() + (1 - q.sum()))
    possible = p > 0
    p, q = p[possible], q[possible]  # what is left over counted as no text already
    kl = float((p * (p / q).log()).sum()) if bool((q > 0).all()) else float("inf")
    return DecodedDistribution(float(q.sum()), total_variation, kl, nfe)


@dataclass(eq=False)
class _Partial:
    """A partly decoded text: its probability, the part of it that has to be evaluated (anew), the policy's state."""

    tokens: Text
    state: RowState
    hold: bool = False
    p: float = 0.0
    p_evaluated: float = 0.0


@dataclass(frozen=True, eq=False)
class _Draw:
    """A random event before a policy selects: of which partial text, its probability, proposed tokens, uniforms."""

    index: int
    p: float
    sampled: Text | None = None
    u: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class _Enumeration:
    """All that can happen under one order."""

    joint: JointDistribution
    policy: DecodingPolicy
    start: Text
    rank: Tensor | None
    greedy: bool

    def run(self, max_steps: int) -> tuple[Tensor, float]:
        """Return the probability of each text of the support, [S], and the expected evaluations."""
        n, q, nfe = len(self.start), torch.zeros_like(self.joint.probabilities), 0.0
        partials = [_Partial(self.start, self.policy.init(1, n), p=1.0, p_evaluated=1.0)]
        rows = {tuple(text): i for i, text in enumerate(self.joint.support.tolist())}
        for step in range(max_steps):
            if not partials:
                return q, nfe
            nfe += sum(partial.p_evaluated for partial in partials)
            after, partials = self.step(partials, step), []
            for partial in after:
                if self.joint.mask_token_id in partial.tokens or partial.hold:
                    partials.append(partial)
                else:
                    q[rows[partial.tokens]] += partial.p
        raise RuntimeError(f"{self.policy} does not end within {max_steps} steps")

    def step(self, partials: list[_Partial], step: int) -> list[_Partial]:
        """Return the texts after one step that still agree with one of the support."""
        states = torch.tensor([partial.tokens for partial in partials])
        logp = self.joint(states).log_softmax(-1)
        tables = logp.exp().tolist()
        texts = [self.joint.support[row].tolist() for row in self.joint.consistent_mass(states) > 0]
        draws = [d for i in range(len(partials)) for d in self.draws(i, states[i].tolist(), tables[i], step)]
        index = torch.tensor([d.index for d in draws])
        sampled = torch.tensor([d.sampled for d in draws]) if draws[0].sampled is not None else None
        u = torch.tensor([d.u for d in draws], dtype=torch.float64) if draws[0].u is not None else self.rank

        def uniform(name: str) -> Tensor:
            if u is None:
                raise RuntimeError(f"the distribution of a policy that draws {name!r} is a sum: over_orders = True")
            return u.expand(len(index), states.shape[1])

        gap = torch.tensor(self.start) == self.joint.mask_token_id
        view = StepView.of_block(
            logp[index], states[index], self.joint.mask_token_id, sampled=sampled, step=step, uniform=uniform,
            mask_budget=torch.full(index.shape, int(gap.sum())), prompt_or_pad=~gap.expand(len(index), -1),
        )  # fmt: skip
        state = {key: torch.cat([partials[i].state[key] for i in index.tolist()]) for key in partials[0].state}
        decision, after = self.policy.select(view, state)
        if decision.tokens is not None or (decision.remask is not None and bool(decision.remask.any())):
            raise UserError(
                f"decoded_distribution: {name_of(type(self.policy))} takes tokens back or draws its own, and its "
                "distribution is not summed"
            )
        written = decision.commit & view.masked
        if decision.edit is not None:
            written = written | (decision.edit & ~view.masked & gap)
        merged: dict[tuple[object, ...], _Partial] = {}
        for row, d in enumerate(draws):
            old, positions = partials[d.index], written[row].nonzero()[:, 0].tolist()
            own = {key: value[row : row + 1] for key, value in after.items()}
            hold = decision.hold is not None and bool(decision.hold[row])
            if d.sampled is not None:
                outcomes = [(tuple(d.sampled[i] for i in positions), 1.0)]
            else:
                outcomes = self.outcomes(tables[d.index], positions, texts[d.index])
            for values, chance in outcomes:
                tokens, p = _replaced(old.tokens, positions, values), old.p * d.p * chance
                key = (tokens, hold, *(value.numpy().tobytes() for value in own.values()))
                new = merged.setdefault(key, _Partial(tokens, own, hold))
                new.p += p
                new.p_evaluated += p if positions or not self.policy.may_skip else 0.0
        reached = list(merged.values())
        alive = self.joint.consistent_mass(torch.tensor([partial.tokens for partial in reached])).sum(1) > 0
        return list(itertools.compress(reached, alive.tolist()))

    def draws(self, index: int, tokens: list[int], table: Table, step: int) -> Iterator[_Draw]:
        """Yield what may be drawn for one partial text before the policy selects."""
        probability = getattr(self.policy, "commit_probability", None)
        masked = [i for i, token in enumerate(tokens) if token == self.joint.mask_token_id]
        if self.policy.order_depends_on_samples:
            for values, p in self.outcomes(table, masked):
                yield _Draw(index, p, sampled=_replaced(tokens, masked, values))
        elif probability is None:
            yield _Draw(index, 1.0)
        else:
            p, never = float(probability(torch.tensor(step))), 1 - 2.0**-53
            for coins in itertools.product((True, False), repeat=len(masked)):
                weight = p ** sum(coins) * (1 - p) ** (len(coins) - sum(coins))
                if weight > 0:
                    u = [0.0 if coin else never for coin in coins]
                    yield _Draw(index, weight, u=_replaced([never] * len(tokens), masked, u))

    def outcomes(
        self, table: Table, positions: list[int], texts: list[list[int]] | None = None
    ) -> list[tuple[Text, float]]:
        """Return the values that positions may get, and their probabilities; only those of `texts` if given."""
        if self.greedy:
            return [(tuple(max(range(len(table[i])), key=table[i].__getitem__) for i in positions), 1.0)]
        if texts is None:
            values = list(itertools.product(*([v for v, p in enumerate(table[i]) if p > 0] for i in positions)))
        else:
            values = list({tuple(text[i] for i in positions): None for text in texts})
        return [(new, math.prod(table[i][v] for i, v in zip(positions, new, strict=True))) for new in values]


def _replaced(values: Sequence[N], positions: list[int], new: Sequence[N]) -> tuple[N, ...]:
    """Return values with new ones at some positions."""
    changed = dict(zip(positions, new, strict=True))
    return tuple(changed.get(i, value) for i, value in enumerate(values))


# The list tasks of ParallelBench: their answers, each with the same probability


def _empirical(texts: list[Text], n_words: int) -> JointDistribution:
    """Return the empirical distribution of texts."""
    unique = sorted(set(texts))
    counts = torch.tensor([texts.count(t) for t in unique], dtype=torch.float64)
    return JointDistribution(torch.tensor(unique), counts / counts.sum(), n_words)


def replace_joint(n: int) -> JointDistribution:
    """Return the lists 0 .. n - 1 with one item replaced by n.

    Args:
        n: items of the list.
    """
    return _empirical([tuple(n if j == i else j for j in range(n)) for i in range(n)], n + 1)


def insert_joint(n: int) -> JointDistribution:
    """Return the lists 0 .. n - 1 with n inserted somewhere: n + 1 tokens.

    Args:
        n: items of the list.
    """
    return _empirical([(*range(i), n, *range(i, n)) for i in range(n + 1)], n + 1)


def remove_joint(n: int) -> JointDistribution:
    """Return the lists 0 .. n - 1 without one item: n - 1 tokens.

    Args:
        n: items of the list.
    """
    return _empirical([tuple(j for j in range(n) if j != i) for i in range(n)], n)


def shuffle_joint(n: int) -> JointDistribution:
    """Return the permutations of 0 .. n - 1.

    Args:
        n: items of the list.
    """
    return _empirical(list(itertools.permutations(range(n))), n)


def parity_joint(n: int) -> JointDistribution:
    """Return the strings of n bits whose sum is even.

    Args:
        n: number of bits.
    """
    return _empirical([bits for bits in itertools.product((0, 1), repeat=n) if sum(bits) % 2 == 0], 2)
