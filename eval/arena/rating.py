"""Skills as Gaussians, and what a ranking of K pictures says about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Protocol

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["RULES", "AllPairs", "Comparison", "Ranks", "Rating", "RatingRule", "TrueSkill", "adjacent"]

Ranks = Sequence[int | None]  # from 1, equal ones are ties; None is below all that have one, in no order
W_MAX = 1 - 1e-12  # of the share of the variance that one comparison takes away
Gaussian = tuple[float, float]  # precision, precision * mean
Messages = tuple[Gaussian, Gaussian]  # of a comparison, to the better and to the worse
SCORE = 3  # standard deviations below the mean


@dataclass(frozen=True)
class Rating:
    """A Gaussian belief about a model's skill.

    Attributes:
        mu: mean.
        sigma: standard deviation.
    """

    mu: float = 25.0
    sigma: float = 25.0 / 3

    @property
    def score(self) -> float:
        """The skill that the model has almost surely, mu - 3 sigma."""
        return self.mu - SCORE * self.sigma


@dataclass(frozen=True)
class Comparison:
    """Two of K pictures.

    Attributes:
        better, worse: indices.
        tied: whether neither is better.
    """

    better: int
    worse: int
    tied: bool


class RatingRule(Protocol):
    """A Bayesian update of K ratings by a ranking."""

    @property
    def prior(self) -> Rating:
        """The rating of a model without votes."""
        ...

    def update(self, ratings: Sequence[Rating], ranks: Ranks) -> list[Rating]:
        """Return the ratings after a vote.

        Args:
            ratings: before it, K of them.
            ranks: of the K pictures.
        """
        ...


def adjacent(ranks: Ranks) -> list[Comparison]:
    """Return the comparisons that a ranking implies: neighbours in its order, and the last ranked with each unranked.

    Args:
        ranks: of K pictures.
    """
    ranked = sorted((rank, i) for i, rank in enumerate(ranks) if rank is not None)
    pairs = [Comparison(i, j, a == b) for (a, i), (b, j) in pairwise(ranked)]
    return pairs + [Comparison(ranked[-1][1], i, False) for i, rank in enumerate(ranks) if rank is None]


@dataclass(frozen=True)
class TrueSkill:
    """The factor graph of TrueSkill (Herbrich et al. 2006) with one player a team, by expectation propagation.

    A picture's quality is its model's skill plus noise of variance beta^2, and neighbours in the ranking differ by more
    than the draw margin, or by less if they are tied. Defaults are those of the Python package trueskill, which
    K-Sort Eval uses.

    Attributes:
        prior: of a model without votes.
        beta: standard deviation of a picture's quality around its model's skill.
        tau: standard deviation that is added to every skill at each vote, so that none is ever settled.
        draw: probability that two pictures of equal models are tied, which sets the draw margin.
        tolerance: largest change of a message at which the passes end, in precisions.
        passes: over all comparisons, at most.
    """

    prior: Rating = Rating()
    beta: float = 25.0 / 6
    tau: float = 25.0 / 300
    draw: float = 0.1
    tolerance: float = 1e-9
    passes: int = 100

    def __post_init__(self) -> None:
        check_fields(self, beta="(0, inf)", tau="[0, inf)", draw="[0, 1)", tolerance="(0, inf)", passes="[1, inf)")

    def update(self, ratings: Sequence[Rating], ranks: Ranks) -> list[Rating]:
        """Return the ratings after a vote."""
        pairs = adjacent(ranks)
        if not self.draw and any(pair.tied for pair in pairs):
            raise UserError("a ranking with a tie needs draw > 0")
        skills = [_gaussian(r.mu, r.sigma**2 + self.tau**2) for r in ratings]
        qualities = [_gaussian(r.mu, r.sigma**2 + self.tau**2 + self.beta**2) for r in ratings]
        updated = []
        for skill, prior, quality in zip(skills, qualities, self._propagate(qualities, pairs), strict=True):
            precision, weighted = _minus(quality, prior)  # what the comparisons say about the quality
            noisy = 1 + precision * self.beta**2
            precision, weighted = _plus(skill, (precision / noisy, weighted / noisy))
            updated.append(Rating(weighted / precision, math.sqrt(1 / precision)))
        return updated

    def _propagate(self, priors: list[Gaussian], pairs: list[Comparison]) -> list[Gaussian]:
        """Return the qualities after passing messages back and forth along the comparisons until they settle."""
        margin = math.sqrt(2) * self.beta * NormalDist().inv_cdf((self.draw + 1) / 2)
        quality, messages = list(priors), [((0.0, 0.0), (0.0, 0.0)) for _ in pairs]
        schedule = [*range(len(pairs)), *reversed(range(len(pairs) - 1))]
        for _ in range(self.passes):
            before = list(messages)
            for k in schedule:
                i, j = pairs[k].better, pairs[k].worse
                a, b = _minus(quality[i], messages[k][0]), _minus(quality[j], messages[k][1])
                messages[k] = _messages(a, b, margin, pairs[k].tied)
                quality[i], quality[j] = _plus(a, messages[k][0]), _plus(b, messages[k][1])
            if _change(before, messages) < self.tolerance:
                break
        return quality


@dataclass(frozen=True)
class AllPairs:
    """The update that the paper of K-Sort Arena prints: every pair of the ranking on its own, all from the old ratings.

    Pairs count as if they were independent, so a vote of K = 4 is trusted too much: the bracket of the variance can
    fall below zero, and only the floor saves it. For K = 2 it is TrueSkill without draws and tau. Ties say nothing.

    Attributes:
        prior: of a model without votes.
        beta: standard deviation of a picture's quality around its model's skill.
        floor: smallest factor of the variance.
    """

    prior: Rating = Rating()
    beta: float = 25.0 / 6
    floor: float = 1e-4

    def __post_init__(self) -> None:
        check_fields(self, beta="(0, inf)", floor="(0, 1]")

    def update(self, ratings: Sequence[Rating], ranks: Ranks) -> list[Rating]:
        """Return the ratings after a vote."""
        order = [math.inf if rank is None else rank for rank in ranks]
        updated = []
        for mine, rating in zip(order, ratings, strict=True):
            variance, shift, loss = rating.sigma**2, 0.0, 0.0
            for theirs, other in zip(order, ratings, strict=True):
                if mine == theirs:
                    continue
                c = math.sqrt(2 * self.beta**2 + variance + other.sigma**2)
                sign = 1 if mine < theirs else -1
                v, w = _win(sign * (rating.mu - other.mu) / c)
                shift += sign * v / c
                loss += variance / c**2 * w
            updated.append(Rating(rating.mu + variance * shift, math.sqrt(variance * max(self.floor, 1 - loss))))
        return updated


RULES: dict[str, RatingRule] = {"trueskill": TrueSkill(), "all-pairs": AllPairs()}


def _gaussian(mean: float, variance: float) -> Gaussian:
    return 1 / variance, mean / variance


def _plus(a: Gaussian, b: Gaussian) -> Gaussian:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: Gaussian, b: Gaussian) -> Gaussian:
    return a[0] - b[0], a[1] - b[1]


def _messages(better: Gaussian, worse: Gaussian, margin: float, tied: bool) -> Messages:
    """Return what "the difference is above the margin" (tied: within it) says about two independent Gaussians."""
    v_better, v_worse = 1 / better[0], 1 / worse[0]
    m_better, m_worse = better[1] * v_better, worse[1] * v_worse
    mean, variance = m_better - m_worse, v_better + v_worse
    c = math.sqrt(variance)
    v, w = _draw(mean / c, margin / c) if tied else _win((mean - margin) / c)
    w = min(w, W_MAX)
    precision = w / (variance * (1 - w))  # the message to the difference: its truncated moments over the Gaussian
    weighted = (c * v + mean * w) / (variance * (1 - w))
    to_better, to_worse = 1 + precision * v_worse, 1 + precision * v_better
    return (
        (precision / to_better, (weighted + precision * m_worse) / to_better),
        (precision / to_worse, (precision * m_better - weighted) / to_worse),
    )


def _win(x: float) -> tuple[float, float]:
    """Return V = phi(x) / Phi(x) and W = V (V + x), the shift and the loss of variance of a Gaussian above -x."""
    if x < -30:  # where Phi is about to underflow
        above = -1 / x + 2 / x**3
        return -x + above, (above - x) * above
    v = _pdf(x) / _cdf(x)
    return v, v * (v + x)


def _draw(x: float, margin: float) -> tuple[float, float]:
    """Return the same two of a Gaussian whose mean is x and whose values lie within the margin around 0."""
    a, b = margin - abs(x), -margin - abs(x)
    inside = _cdf(a) - _cdf(b)
    v, w = a, W_MAX  # where all of the Gaussian is outside, its nearest value within
    if inside > 1e-300:
        v = (_pdf(b) - _pdf(a)) / inside
        w = v**2 + (a * _pdf(a) - b * _pdf(b)) / inside
    return (v if x >= 0 else -v), w


def _change(before: list[Messages], after: list[Messages]) -> float:
    """Return the largest change of a number in the messages."""
    flat = [[x for message in messages for gaussian in message for x in gaussian] for messages in (before, after)]
    return max(abs(x - y) for x, y in zip(*flat, strict=True))


def _pdf(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
