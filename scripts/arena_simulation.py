"""Count the votes until a leaderboard's order is right, for K-Sort Arena and for pairwise Elo.

    python scripts/arena_simulation.py [--models 50] [--seeds 5] [--flips 0]

The protocol of the paper (arXiv 2408.14468): models whose true order is known join without votes, and a voter ranks
what is shown by that order (--flips: neighbours in a vote are swapped with this probability). Counted are the votes
until the order of all models is right for the first time, and until it is right for good, of --most votes (Elo: twenty
times as many). Elo: pairs at random, all ratings updated with a K-factor of 32.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

from gen.eval.arena.board import Board
from gen.eval.arena.rating import RULES


def ranking(shown, flips, rng):
    """Ranks of models that are named by their true rank."""
    order = sorted(shown)
    for i in range(len(order) - 1):
        if rng.random() < flips:
            order[i : i + 2] = order[i + 1], order[i]
    return [order.index(model) + 1 for model in shown]


class KSort:
    """K models at a time, chosen by the board or at random."""

    def __init__(self, models, rng, flips, k=4, rule="trueskill", alpha=3.0, explore=True):
        self.rng, self.flips, self.k, self.explore = rng, flips, k, explore
        self.board = Board(range(models), RULES[rule], alpha)

    def vote(self):
        shown = self.board.pick(self.k, self.rng) if self.explore else self.rng.sample(list(self.board.ratings), self.k)
        self.board.add(shown, ranking(shown, self.flips, self.rng))

    def score(self, model):
        return self.board.ratings[model].score


class Elo:
    """Random pairs, whose ratings change by at most `factor`."""

    def __init__(self, models, rng, flips, factor=32.0):
        self.rng, self.flips, self.factor = rng, flips, factor
        self.ratings = [1000.0] * models

    def vote(self):
        a, b = self.rng.sample(range(len(self.ratings)), 2)
        won = ranking([a, b], self.flips, self.rng)[0] == 1
        step = self.factor * (won - 1 / (1 + 10 ** ((self.ratings[b] - self.ratings[a]) / 400)))
        self.ratings[a] += step
        self.ratings[b] -= step

    def score(self, model):
        return self.ratings[model]


def votes_needed(way, models, most):
    """Votes until the order is right for the first time, and for good; None for never."""
    first = wrong = None
    for vote in range(1, most + 1):
        way.vote()
        if sorted(range(models), key=way.score, reverse=True) != list(range(models)):
            wrong = vote
        elif first is None:
            first = vote
    return first, None if wrong == most else (wrong or 0) + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flips", type=float, default=0.0)
    parser.add_argument("--most", type=int, default=2500)
    args = parser.parse_args()
    ways = {
        "K = 4, trueskill": (KSort, {}, 1),
        "K = 4, trueskill, alpha = 1": (KSort, {"alpha": 1.0}, 1),
        "K = 4, all-pairs, alpha = 1": (KSort, {"rule": "all-pairs", "alpha": 1.0}, 1),
        "K = 2, trueskill, alpha = 1": (KSort, {"k": 2, "alpha": 1.0}, 1),
        "K = 4, trueskill, at random": (KSort, {"explore": False}, 1),
        "Elo, pairs at random": (Elo, {}, 20),
    }
    for name, (kind, how, longer) in ways.items():
        needed = [
            votes_needed(kind(args.models, random.Random(seed), args.flips, **how), args.models, longer * args.most)
            for seed in range(args.seeds)
        ]
        columns = [[n for n in column if n is not None] for column in zip(*needed, strict=True)]
        words = [f"{statistics.median(c):,.0f} ({len(c)} of {args.seeds})" if c else "never" for c in columns]
        print(f"{name:30} first right after {words[0]:>18}, for good after {words[1]:>18}", flush=True)


if __name__ == "__main__":
    main()
