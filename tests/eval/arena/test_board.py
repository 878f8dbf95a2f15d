"""The ranking of all votes, and the next comparison."""

import random

import pytest

from gen.config.errors import UserError
from gen.eval.arena.board import Board
from gen.eval.arena.rating import RULES


def voted(rule="trueskill", votes=80, seed=0):
    """A board of six models that are ranked by their names."""
    rng, board = random.Random(seed), Board("abcdef", RULES[rule])
    for _ in range(votes):
        shown = board.pick(4, rng)
        board.add(shown, [sorted(shown).index(model) + 1 for model in shown])
    return board


@pytest.mark.parametrize("rule", RULES)
def test_votes_make_the_ranking_to_the_bit(rule) -> None:
    board = voted(rule)
    assert [row.model for row in board.standings()] == list("abcdef")
    assert [row.rank for row in board.standings()] == [1, 2, 3, 4, 5, 6]
    assert board.standings() == voted(rule).standings()
    assert sum(row.votes for row in board.standings()) == 4 * 80


def test_few_votes_are_ties() -> None:
    first, second = Board("ab").standings()
    assert first.ties == (2,) and second.ties == (1,) and first.votes == 0
    far = voted(votes=200).standings()
    assert far[-1].rank not in far[0].ties


def test_the_least_shown_meets_those_it_never_met_and_then_those_like_it() -> None:
    board = Board("abcdefg")
    for models in ("abcd", "efga", "abcd"):
        board.add(models, [1, 2, 3, 4])
    chosen = board.pick(4, random.Random(0))
    assert set("efg") & set(chosen)  # shown once, the fewest
    rest = {board.pick(2, random.Random(seed), "bcde")[0] for seed in range(20)}
    assert rest <= set("bcde")
    close = Board("abc", alpha=0.0)
    for models in ("ab", "bc", "ca", "ab", "ab", "bc"):
        close.add(models, [1, 2])
    pivot = min("abc", key=lambda m: close.shown[m])
    near = min(set("abc") - {pivot}, key=lambda m: abs(close.ratings[m].score - close.ratings[pivot].score))
    assert set(close.pick(2, random.Random(1))) == {pivot, near}


def test_refuses_more_pictures_than_models() -> None:
    with pytest.raises(UserError, match="4 pictures at a time of 2 models"):
        Board("ab").pick(4, random.Random(0))
