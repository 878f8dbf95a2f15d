"""The ranking that votes make, and which models the next vote should compare."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from gen.config.errors import UserError
from gen.eval.arena.rating import Ranks, Rating, RatingRule, TrueSkill
from gen.eval.arena.votes import Vote
from gen.eval.estimate import Estimate
from gen.eval.tables import one_line

__all__ = ["Board", "Standing", "standing_cells"]


ALPHA = 3.0  # with 1, an order that was right is lost again for four times as many votes: scripts/arena_simulation.py


@dataclass(frozen=True)
class Standing:
    """A model's row in the ranking.

    Attributes:
        rank: from 1, by score.
        model: its name.
        rating: the belief about its skill.
        votes: in which it was shown.
        ties: ranks of the models whose mu is less than two combined sigma away.
    """

    rank: int
    model: str
    rating: Rating
    votes: int
    ties: tuple[int, ...] = ()

    @property
    def skill(self) -> Estimate:
        return Estimate(self.rating.mu, self.rating.sigma, self.votes)


def standing_cells(standings: Sequence[Standing]) -> list[tuple[str, ...]]:
    """Return heads and rows of the ranking as text.

    Args:
        standings: best first.
    """
    rows = [
        (
            f"{row.rank}",
            one_line(row.model),
            f"{row.rating.score:.2f}",
            row.skill.text(),
            f"{row.votes}",
            ", ".join(f"#{rank}" for rank in row.ties),
        )
        for row in standings
    ]
    return [("#", "model", "score", "skill", "votes", "tie with"), *rows]


class Board:
    """Ratings of models, updated vote by vote: the same votes in the same order give the same bits.

    Args:
        models: names, in the order in which equal ones are listed.
        rule: updates ratings by a ranking.
        alpha: weight of exploration against comparing models of similar strength; the paper's is 1.
    """

    def __init__(self, models: Iterable[str] = (), rule: RatingRule | None = None, alpha: float = ALPHA) -> None:
        self.rule = rule or TrueSkill()
        self.alpha = alpha
        self.ratings = dict.fromkeys(models, self.rule.prior)
        self.votes = 0
        self.shown: Counter[str] = Counter()
        self.met: Counter[frozenset[str]] = Counter()

    @classmethod
    def of(cls, votes: Iterable[Vote], rule: RatingRule | None = None, models: Iterable[str] = ()) -> Board:
        """Return the board that votes make, in their order."""
        board = cls(models, rule)
        for vote in votes:
            board.add(vote.models, vote.ranks)
        return board

    def add(self, models: Sequence[str], ranks: Ranks) -> None:
        """Update the ratings by a vote.

        Args:
            models: that were compared; new ones join.
            ranks: of each, see gen.eval.arena.votes.Vote.
        """
        before = [self.ratings.get(model, self.rule.prior) for model in models]
        self.ratings |= dict(zip(models, self.rule.update(before, ranks), strict=True))
        self.votes += 1
        self.shown.update(models)
        self.met.update(map(frozenset, combinations(models, 2)))

    def standings(self) -> list[Standing]:
        """Return all models, best first."""
        order = sorted(self.ratings.items(), key=lambda item: -item[1].score)
        rows = [Standing(i, model, rating, self.shown[model]) for i, (model, rating) in enumerate(order, 1)]
        tied = [tuple(b.rank for b in rows if b is not a and not a.skill.differs(b.skill)) for a in rows]
        return [Standing(r.rank, r.model, r.rating, r.votes, t) for r, t in zip(rows, tied, strict=True)]

    def pick(self, k: int, rng: random.Random, models: Sequence[str] | None = None) -> list[str]:
        """Return k models to compare: the one shown least, and those from whose comparison with it most is learned.

        The paper's rule, U(i, q) = -|S_i - S_q| + alpha sqrt(ln n / n_iq), with S the score, n all votes, n_iq those in
        which both were shown. The paper prints the first term without its minus sign, but means opponents of similar
        strength: with the plus sign the ranking does not converge. Pairs that never met come first, the nearest of them
        first.

        Args:
            k: how many.
            rng: breaks ties, and shuffles.
            models: of which; None for all.
        """
        names = list(self.ratings) if models is None else list(models)
        if not 2 <= k <= len(names):
            raise UserError(f"{k} pictures at a time of {len(names)} models; allowed: 2 to the number of models")
        rng.shuffle(names)
        pivot = min(names, key=lambda name: self.shown[name])

        def gain(name: str) -> tuple[bool, float]:
            met = self.met[frozenset((pivot, name))]
            near = -abs(self.ratings[pivot].score - self.ratings[name].score)
            return not met, near + (self.alpha * math.sqrt(math.log(self.votes) / met) if met else 0.0)

        rivals = sorted((name for name in names if name != pivot), key=gain, reverse=True)
        chosen = [pivot, *rivals[: k - 1]]
        rng.shuffle(chosen)
        return chosen
