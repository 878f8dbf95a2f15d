"""Exact worlds of text: a joint distribution that is known token by token, and the law of what a policy makes of it.

`Joint` is a Predictor whose conditionals are exact, so a decoder's errors are its own: those of committing tokens
together that depend on one another. `law` sums over all that can happen, without a sample.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import name_of
from gen.text.contracts import DecodingPolicy, KvCache, RowState, Span, StepView

__all__ = ["Joint", "Law", "insert", "law", "parity", "remove", "replace", "shuffle", "whole_view"]

Table = list[list[float]]


@dataclass(frozen=True, eq=False)
class Joint:
    """Texts [S, L] of tokens 0 .. words - 1 with probabilities [S], float64; the mask is token `words`.

    As a Predictor it knows canvases whose generated part is `offset` tokens from the left; what lies there, it ignores.
    A canvas that agrees with no text gets uniform predictions.
    """

    texts: Tensor
    probs: Tensor
    words: int
    offset: int = 0
    eos_token_ids: tuple[int, ...] = ()
    block_size: int | None = None
    shift: int = 0

    @property
    def mask_token_id(self) -> int:
        return self.words

    @property
    def vocab_size(self) -> int:
        return self.words + 1

    @cached_property
    def hot(self) -> Tensor:
        return torch.nn.functional.one_hot(self.texts, self.vocab_size).double()  # [S, L, V]

    def weights(self, states: Tensor) -> Tensor:
        """p(text and it agrees with states [B, L]), [B, S]."""
        agrees = (states[:, None] == self.texts) | (states[:, None] == self.mask_token_id)
        return agrees.all(-1) * self.probs

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
        n = self.texts.shape[1]
        states = tokens[:, self.offset : self.offset + n]
        if states.shape[1] < n:
            states = torch.nn.functional.pad(states, (0, n - states.shape[1]), value=self.mask_token_id)
        mass = torch.einsum("bs,slv->blv", self.weights(states), self.hot)
        mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, torch.ones_like(mass))
        logits = mass.log()  # [B, L, V]
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        inner = (positions - self.offset).clamp(0, n - 1)
        return logits.gather(1, inner[..., None].expand(-1, -1, self.vocab_size))


@dataclass(frozen=True)
class Law:
    """success: the probability that the text is one of the joint's. tv, kl: of the joint P and the law Q of what is
    decoded, total variation and KL(P || Q) in nats. nfe: expected evaluations; a text that is lost stops there."""

    success: float
    tv: float
    kl: float
    nfe: float


def law(joint: Joint, policy: DecodingPolicy, greedy: bool = False, random: bool = False, steps: int = 1000) -> Law:
    """The exact law of decoding the whole text at once by a policy, tokens drawn at temperature 1.

    greedy: the likeliest tokens, for P's mode. random: the policy ranks by uniform("order"), and all orders are summed.
    A policy with chance(step) commits each place with that probability, and all subsets are summed; of one whose order
    uses samples all tokens that may be drawn are. Raises UserError for one that takes tokens back or draws its own.
    """
    n = joint.texts.shape[1]
    orders: list[Any] = list(itertools.permutations(range(n))) if random else [None]
    q, nfe = torch.zeros_like(joint.probs), 0.0
    for order in orders:
        rank = None if order is None else (torch.tensor(order, dtype=torch.float64) + 0.5) / n
        mass, spent = _enumerate(joint, policy, rank, greedy, steps)
        q, nfe = q + mass / len(orders), nfe + spent / len(orders)
    success = float(q.sum())
    tv = 0.5 * float((joint.probs - q).abs().sum() + (1 - q.sum()))
    kl = float((joint.probs * (joint.probs / q).log()).sum()) if bool((q > 0).all()) else float("inf")
    return Law(success, tv, kl, nfe)


@dataclass(eq=False)
class _Node:
    """A text on its way: its probability, the part of it that has to be evaluated (anew), the policy's state."""

    tokens: tuple[int, ...]
    state: RowState
    p: float = 0.0
    fresh: float = 0.0


@dataclass(frozen=True, eq=False)
class _Case:
    """One of the things that may happen to a node before its policy selects: of probability p, what is drawn, and u."""

    node: int
    p: float
    drawn: tuple[int, ...] | None = None
    u: tuple[float, ...] | None = None


def _enumerate(
    joint: Joint, policy: DecodingPolicy, rank: Tensor | None, greedy: bool, steps: int
) -> tuple[Tensor, float]:
    """The probability of each of the joint's texts, [S], and the expected evaluations, for one order."""
    n, q, nfe = joint.texts.shape[1], torch.zeros_like(joint.probs), 0.0
    level = [_Node((joint.mask_token_id,) * n, policy.init(1, n), 1.0, 1.0)]
    rows = {tuple(text): i for i, text in enumerate(joint.texts.tolist())}
    for step in range(steps):
        if not level:
            return q, nfe
        nfe += sum(node.fresh for node in level)
        nexts = _step(joint, policy, rank, greedy, level, step)
        level = []
        for node, hold in nexts:
            if joint.mask_token_id in node.tokens or hold:
                level.append(node)
            else:
                q[rows[node.tokens]] += node.p
    raise RuntimeError(f"{policy} does not end within {steps} steps")


def _step(
    joint: Joint, policy: DecodingPolicy, rank: Tensor | None, greedy: bool, level: list[_Node], step: int
) -> list[tuple[_Node, bool]]:
    """The texts after one step that still agree with one of the joint's, and whether each is held."""
    states = torch.tensor([node.tokens for node in level])
    logp = joint(states).log_softmax(-1)
    tables = logp.exp().tolist()
    agree = joint.weights(states) > 0
    texts = [joint.texts[row].tolist() for row in agree]
    cases = [case for i in range(len(level)) for case in _cases(joint, policy, i, states[i], tables[i], greedy, step)]
    index = torch.tensor([case.node for case in cases])
    drawn = torch.tensor([case.drawn for case in cases]) if cases[0].drawn is not None else None
    u = torch.tensor([case.u for case in cases], dtype=torch.float64) if cases[0].u is not None else rank
    view = whole_view(joint, states[index], logp[index], step, u, drawn)
    state = {key: torch.cat([level[i].state[key] for i in index.tolist()]) for key in level[0].state}
    choice, after = policy.select(view, state)
    if choice.tokens is not None or (choice.remask is not None and bool(choice.remask.any())):
        raise UserError(f"law: {name_of(type(policy))} takes tokens back or draws its own; its law is not summed")
    written = choice.commit & view.masked
    written = written if choice.edit is None else written | (choice.edit & ~view.masked)
    found: dict[Any, tuple[_Node, bool]] = {}
    for c, case in enumerate(cases):
        old, places = level[case.node], written[c].nonzero()[:, 0].tolist()
        own = {key: value[c : c + 1] for key, value in after.items()}
        hold = choice.hold is not None and bool(choice.hold[c])
        if case.drawn is not None:
            outcomes = [(tuple(case.drawn[i] for i in places), 1.0)]
        else:
            outcomes = _outcomes(tables[case.node], places, greedy, texts[case.node])
        for tokens, chance in outcomes:
            new = list(old.tokens)
            for place, token in zip(places, tokens, strict=True):
                new[place] = token
            key = (tuple(new), hold, *(value.numpy().tobytes() for value in own.values()))
            node, _ = found.setdefault(key, (_Node(tuple(new), own), hold))
            node.p += old.p * case.p * chance
            node.fresh += old.p * case.p * chance if places or not policy.may_skip else 0.0
    nodes = list(found.values())
    alive = joint.weights(torch.tensor([node.tokens for node, _ in nodes])).sum(1) > 0
    return [pair for pair, lives in zip(nodes, alive.tolist(), strict=True) if lives]


def _cases(
    joint: Joint, policy: DecodingPolicy, i: int, tokens: Tensor, table: Table, greedy: bool, step: int
) -> list[_Case]:
    """What may happen to node i before its policy selects."""
    n, chance = len(tokens), getattr(policy, "chance", None)
    masked = (tokens == joint.mask_token_id).nonzero()[:, 0].tolist()
    if policy.order_depends_on_samples:
        return [
            _Case(i, p, drawn=_with(tokens.tolist(), masked, drawn)) for drawn, p in _outcomes(table, masked, greedy)
        ]
    if chance is None:
        return [_Case(i, 1.0)]
    p = float(chance(torch.tensor(step)))
    cases = []
    for coins in itertools.product((True, False), repeat=len(masked)):
        weight = p ** sum(coins) * (1 - p) ** (len(coins) - sum(coins))
        if weight > 0:
            us = [0.0 if coin else 1 - 2.0**-53 for coin in coins]
            cases.append(_Case(i, weight, u=_with([1 - 2.0**-53] * n, masked, us)))
    return cases


def _with(values: list[Any], places: list[int], new: Any) -> tuple[Any, ...]:
    """Values with new ones at some places."""
    out = list(values)
    for place, value in zip(places, new, strict=True):
        out[place] = value
    return tuple(out)


def _outcomes(
    table: Table, places: list[int], greedy: bool, texts: list[list[int]] | None = None
) -> list[tuple[tuple[int, ...], float]]:
    """What places with probabilities table [L][V] may get, and how probably; only what agrees with the texts."""
    if greedy:
        return [(tuple(max(range(len(table[i])), key=table[i].__getitem__) for i in places), 1.0)]
    if texts is None:
        each = [[v for v, p in enumerate(table[i]) if p > 0] for i in places]
        found = list(itertools.product(*each))
    else:
        found = list({tuple(text[i] for i in places): None for text in texts})
    return [(new, math.prod(table[i][v] for i, v in zip(places, new, strict=True))) for new in found]


def whole_view(
    joint: Joint,
    states: Tensor,
    logp: Tensor,
    step: int = 0,
    u: Tensor | None = None,
    sampled: Tensor | None = None,
) -> StepView:
    """The view of texts [B, L] that are one window, at a step; u: its uniform numbers, [B, L] or the same for all."""

    def uniform(name: str) -> Tensor:
        if u is None:
            raise RuntimeError(f"the law of a policy that draws {name!r} is a sum over orders: random = True")
        return u.expand(states.shape)

    budget = torch.full((len(states),), states.shape[1])
    return StepView.of_block(
        logp, states, joint.mask_token_id, sampled=sampled, step=step, uniform=uniform, mask_budget=budget
    )


# The list tasks of ParallelBench as joints: their answers, all alike likely


def _uniform(texts: list[tuple[int, ...]], words: int) -> Joint:
    unique = sorted(set(texts))
    counts = torch.tensor([texts.count(t) for t in unique], dtype=torch.float64)
    return Joint(torch.tensor(unique), counts / counts.sum(), words)


def replace(n: int) -> Joint:
    """A list 0 .. n - 1 with one item, any, replaced by n."""
    return _uniform([tuple(n if j == i else j for j in range(n)) for i in range(n)], n + 1)


def insert(n: int) -> Joint:
    """A list 0 .. n - 1 with n inserted anywhere: n + 1 tokens."""
    return _uniform([(*range(i), n, *range(i, n)) for i in range(n + 1)], n + 1)


def remove(n: int) -> Joint:
    """A list 0 .. n - 1 without one item, any: n - 1 tokens."""
    return _uniform([tuple(j for j in range(n) if j != i) for i in range(n)], n)


def shuffle(n: int) -> Joint:
    """A list 0 .. n - 1 in any order."""
    return _uniform(list(itertools.permutations(range(n))), n)


def parity(n: int) -> Joint:
    """n bits whose sum is even."""
    return _uniform([bits for bits in itertools.product((0, 1), repeat=n) if sum(bits) % 2 == 0], 2)
