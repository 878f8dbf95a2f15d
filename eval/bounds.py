"""Bounds of parallel decoding: closed forms and exact optima for joints that are known (gen/text/worlds.py).

A decoder that commits several tokens at once draws each from its own marginal. With exact marginals, sampled at
temperature 1, its law is off by the total correlation of what it commits together (Kang et al. 2025,
arXiv 2510.04767). A decoder that takes the likeliest tokens instead draws from no law, and none of this bounds it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.text.worlds import JointDistribution

__all__ = ["OptimalPartition", "ancestral", "optimal_front", "optimal_partition", "replace_success", "shuffle_success"]


def replace_success(n: int, sizes: Sequence[int]) -> float:
    """Return the success at replacing any one of n items by a new one where sizes[t] tokens are committed in step t.

    It is the sum over steps of: no new item before, and exactly one of this step's.

    Args:
        n: items.
        sizes: of the steps; they add up to n.
    """
    left, before, success = _checked(n, sizes), 1.0, 0.0
    for m in sizes:
        if m:
            success += before * m / left * (1 - 1 / left) ** (m - 1)
            before *= (1 - 1 / left) ** m
            left -= m
    return success


def shuffle_success(n: int, sizes: Sequence[int]) -> float:
    """Return the success at putting n items into any order where sizes[t] tokens are committed in step t: no two alike.

    Args:
        n: items.
        sizes: of the steps; they add up to n.
    """
    left, success = _checked(n, sizes), 1.0
    for m in sizes:
        if m:
            success *= math.perm(left, m) / left**m
            left -= m
    return success


def ancestral(success: Callable[[int, Sequence[int]], float], n: int, steps: int) -> float:
    """Return the success of a sampler that commits every token in one of the steps, all alike likely.

    That is MDLM's ancestral one with the log-linear schedule: the mean of success(n, sizes) over the multinomial law of
    the sizes.

    Args:
        success: replace_success, shuffle_success, or its like.
        n: items.
        steps: of the sampler.
    """
    total = 0.0
    for bars in itertools.combinations(range(n + steps - 1), steps - 1):
        ends = (-1, *bars, n + steps - 1)
        sizes = [b - a - 1 for a, b in itertools.pairwise(ends)]
        ways = math.factorial(n) / math.prod(math.factorial(m) for m in sizes)
        total += ways / steps**n * success(n, sizes)
    return total


def _checked(n: int, sizes: Sequence[int]) -> int:
    if n < 1 or sum(sizes) != n or min(sizes, default=0) < 0:
        raise UserError(f"sizes {list(sizes)} for {n} tokens; they are not negative and add up to it")
    return n


@dataclass(frozen=True)
class OptimalPartition:
    """The best of all ways to commit a text in a number of steps whose positions are fixed beforehand.

    Attributes:
        kl: the least KL(joint || decoded) in nats, L_T.
        parts: the positions of each step that reach it.
        success: the highest probability that the text is one of the joint's, which other parts may reach.
    """

    kl: float
    parts: tuple[tuple[int, ...], ...]
    success: float


def optimal_partition(joint: JointDistribution, steps: int) -> OptimalPartition:
    """Return the optima over all ordered partitions of the positions into parts.

    Args:
        joint: of texts of at most 7 tokens.
        steps: number of parts.

    Raises:
        UserError: for longer texts, or more steps than tokens.
    """
    n = joint.support.shape[1]
    if not 1 <= steps <= n or n > 7:
        raise UserError(f"best: {steps} steps for {n} tokens; 1 <= steps <= tokens <= 7")
    table = _conditionals(joint)  # [2^n, S, n]
    optimum: OptimalPartition | None = None
    for order in itertools.product(range(steps), repeat=n):
        if len(set(order)) < steps:
            continue
        known = [sum(1 << j for j in range(n) if order[j] < order[i]) for i in range(n)]
        law = torch.stack([table[known[i], :, i] for i in range(n)], -1).prod(-1)  # of each text, [S]
        kl, success = float((joint.probabilities * (joint.probabilities / law).log()).sum()), float(law.sum())
        if optimum is None or kl < optimum.kl - 1e-12:
            parts = tuple(tuple(i for i in range(n) if order[i] == t) for t in range(steps))
            optimum = OptimalPartition(max(kl, 0.0), parts, max(success, optimum.success if optimum else 0.0))
        elif success > optimum.success:
            optimum = OptimalPartition(optimum.kl, optimum.parts, success)
    assert optimum is not None
    return optimum


def _conditionals(joint: JointDistribution) -> Tensor:
    """Return p(token i of text s | the tokens of text s at the positions of a set), [2^n sets as bits, S, n]."""
    n = joint.support.shape[1]
    same = joint.support[:, None] == joint.support[None]  # [S, S', n]
    rows = []
    for known in range(1 << n):
        positions = [i for i in range(n) if known >> i & 1]
        agree = same[:, :, positions].all(-1) * joint.probabilities  # p(s' and it agrees with s there)
        rows.append((agree[..., None] * same).sum(1) / agree.sum(1)[:, None])
    return torch.stack(rows)


Outcome = tuple[float, float]  # (forwards, success)


def optimal_front(joints: Sequence[tuple[JointDistribution, float]]) -> list[tuple[float, float]]:
    """Return (tokens per forward, success) that no decoder of exact marginals surpasses, adaptive ones included.

    A decoder may choose the positions of a step by all that is committed, and by chance, but not by the tokens that are
    drawn for it: one that sees them before it chooses, or takes some back (order_depends_on_samples), is not bounded.
    A text that is lost costs nothing more, which no decoder can better. For a given price of a forward the best decoder
    is computed by dynamic programming over all states: exact, and quick up to 8 tokens.

    Args:
        joints: what is to be written, each with its share.

    Returns:
        The corners of the Pareto front, rising in the first. Between two of them it is the straight line in (forwards,
        success).
    """
    total = sum(share for _, share in joints)
    tokens = sum(share * joint.support.shape[1] for joint, share in joints) / total
    games = [(_game(joint), share / total) for joint, share in joints]

    def play(price: float) -> Outcome:
        played = [(_play(game, price), share) for game, share in games]
        return sum(share * p[0] for p, share in played), sum(share * p[1] for p, share in played)

    def between(a: Outcome, b: Outcome) -> list[Outcome]:
        if b[0] - a[0] < 1e-9:
            return []
        price = (b[1] - a[1]) / (b[0] - a[0])
        c = play(price)
        if c[1] - price * c[0] < a[1] - price * a[0] + 1e-9:
            return []
        return [*between(a, c), c, *between(c, b)]

    fewest, surest = play(10.0), play(1e-7)
    corners = [fewest, *between(fewest, surest), *([surest] if surest[0] > fewest[0] + 1e-9 else [])]
    return [(tokens / forwards, success) for forwards, success in reversed(corners)]


Move = tuple[tuple[int, float], ...]  # (kind of state, chance) after a commit; what is missing to 1 is lost
Texts = tuple[tuple[tuple[int, ...], float], ...]  # what may still be written at the masked positions, and its chance


def _game(joint: JointDistribution) -> list[tuple[Move, ...]]:
    """Return the moves of each kind of state: kind 0 is a finished text, the last kind the beginning.

    States in which the same is left to be written, up to the names of tokens, are of one kind.
    """
    kinds: list[tuple[Move, ...]] = [()]
    start = _renamed([(tuple(t), p) for t, p in zip(joint.support.tolist(), joint.probabilities.tolist(), strict=True)])
    _kind(start, kinds, {})
    return kinds


def _kind(texts: Texts, kinds: list[tuple[Move, ...]], known: dict[Texts, int]) -> int:
    """Return the kind of a state; what it leads to is added to the kinds before it."""
    n = len(texts[0][0])
    if n == 0:
        return 0
    key = tuple((text, round(p, 9)) for text, p in texts)
    if key not in known:
        marginals = [dict[int, float]() for _ in range(n)]
        for text, p in texts:
            for table, token in zip(marginals, text, strict=True):
                table[token] = table.get(token, 0.0) + p
        moves = dict[Move, Move]()
        for chosen in itertools.product((True, False), repeat=n):
            if any(chosen):
                move = _move(texts, chosen, marginals, kinds, known)
                moves.setdefault(tuple((kind, round(chance, 9)) for kind, chance in move), move)
        known[key] = len(kinds)
        kinds.append(tuple(moves[rounded] for rounded in sorted(moves)))
    return known[key]


def _move(
    texts: Texts,
    chosen: tuple[bool, ...],
    marginals: list[dict[int, float]],
    kinds: list[tuple[Move, ...]],
    known: dict[Texts, int],
) -> Move:
    """Return what committing at the chosen positions leads to, each drawn from its own marginal."""
    parts: dict[tuple[int, ...], list[tuple[tuple[int, ...], float]]] = {}
    for text, p in texts:
        now = tuple(itertools.compress(text, chosen))
        parts.setdefault(now, []).append((tuple(itertools.compress(text, (not c for c in chosen))), p))
    tables, chances = list(itertools.compress(marginals, chosen)), dict[int, float]()
    for now, rest in parts.items():
        kind = _kind(_renamed(rest), kinds, known)
        chances[kind] = chances.get(kind, 0.0) + math.prod(t[token] for t, token in zip(tables, now, strict=True))
    return tuple(sorted(chances.items()))


def _renamed(texts: list[tuple[tuple[int, ...], float]]) -> Texts:
    """Return texts of tokens 0, 1, ... in the order of their old names, and chances that add up to 1."""
    total = sum(p for _, p in texts)
    name = {token: i for i, token in enumerate(sorted({token for text, _ in texts for token in text}))}
    return tuple(sorted((tuple(name[token] for token in text), p / total) for text, p in texts))


def _play(game: list[tuple[Move, ...]], price: float) -> Outcome:
    """Return expected forwards and success of the decoder with the most success less price x forwards."""
    forwards, success = [0.0], [1.0]
    for moves in game[1:]:
        tried = []
        for move in moves:
            f = 1 + sum(chance * forwards[to] for to, chance in move)
            s = sum(chance * success[to] for to, chance in move)
            tried.append((round(s - price * f, 12), -f, s))
        _, f, s = max(tried)
        forwards.append(-f)
        success.append(s)
    return forwards[-1], success[-1]
