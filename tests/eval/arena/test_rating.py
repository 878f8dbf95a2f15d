"""What a ranking says about skills: against the package trueskill, closed forms and the paper's sums."""

import math

import pytest

from gen.config.errors import UserError
from gen.eval.arena.rating import AllPairs, Rating, TrueSkill, adjacent

FOUR = [Rating(25, 25 / 3), Rating(27, 6), Rating(22, 4), Rating(30, 2)]


def numbers(ratings):
    return [x for r in ratings for x in (r.mu, r.sigma)]


@pytest.mark.parametrize(
    ("rule", "ranks", "expected"),
    [  # trueskill 0.4.5, min_delta = 1e-13
        (TrueSkill(), [1, 2, 3, 4],
         [34.68891246, 5.77987069, 29.51841931, 4.35314613, 24.00663132, 3.31531018, 28.65843879, 1.91547212]),
        (TrueSkill(draw=0, tau=0), [1, 2, 3, 4],
         [33.93937888, 5.87671777, 29.16090195, 4.39281370, 23.96478316, 3.32361059, 28.75379577, 1.91594891]),
        (TrueSkill(), [1, 2, 2, 4],
         [32.77572829, 5.83911573, 27.33759767, 4.09255547, 24.64923017, 3.29494155, 28.85064706, 1.91400337]),
    ],
    ids=["defaults", "no draws", "tie"],
)  # fmt: skip
def test_four_models_as_the_package_does(rule, ranks, expected) -> None:
    assert numbers(rule.update(FOUR, ranks)) == pytest.approx(expected, abs=1e-6)


def test_the_paper_sums_need_their_floor() -> None:
    expected = [41.85902142, 25 / 3 * 0.01, 30.42774355, 3.16622598, 23.67535569, 3.08264789, 28.22922105, 1.87198516]
    assert numbers(AllPairs().update(FOUR, [1, 2, 3, 4])) == pytest.approx(expected, abs=1e-8)
    assert AllPairs().update(FOUR, [1, 1, 1, 1]) == FOUR


@pytest.mark.parametrize("rule", [TrueSkill(draw=0, tau=0), AllPairs()], ids=["trueskill", "all-pairs"])
def test_two_models_in_closed_form(rule) -> None:
    a, b = Rating(29, 5), Rating(24, 7)
    c = math.sqrt(2 * rule.beta**2 + 25 + 49)
    v = math.exp(-((5 / c) ** 2) / 2) / math.sqrt(2 * math.pi) / (math.erfc(-5 / c / math.sqrt(2)) / 2)
    w = v * (v + 5 / c)
    expected = [29 + 25 / c * v, 5 * math.sqrt(1 - 25 / c**2 * w), 24 - 49 / c * v, 7 * math.sqrt(1 - 49 / c**2 * w)]
    assert numbers(rule.update([a, b], [1, 2])) == pytest.approx(expected, rel=1e-12)
    equal = [29.2052208700336, 7.1944814483, 20.7947791299664, 7.1944814483]
    assert numbers(rule.update([Rating()] * 2, [1, 2])) == pytest.approx(equal, abs=1e-6)  # trueskill 0.4.5


def test_unranked_ones_are_below_and_tell_nothing_of_each_other() -> None:
    assert [(c.better, c.worse, c.tied) for c in adjacent([None, 1, 2, None])] == [
        (1, 2, False),
        (2, 0, False),
        (2, 3, False),
    ]
    first, best, *rest = TrueSkill().update([Rating()] * 4, [None, 1, None, None])
    assert best.mu > 25 > first.mu == pytest.approx(rest[0].mu) == pytest.approx(rest[1].mu)
    assert numbers(TrueSkill().update(FOUR[:2], [1, None])) == numbers(TrueSkill().update(FOUR[:2], [1, 2]))


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [1, 1]])
def test_the_most_unlikely_votes_give_numbers(ranks) -> None:
    for rule in (TrueSkill(), AllPairs()):
        far = rule.update([Rating(1e4, 1.0), Rating(-1e4, 1.0)], ranks)
        assert all(map(math.isfinite, numbers(far))) and far[0].sigma > 0
        assert far[0].mu <= 1e4 and far[1].mu >= -1e4


def test_refuses_a_tie_without_draws() -> None:
    with pytest.raises(UserError, match="needs draw > 0"):
        TrueSkill(draw=0).update(FOUR, [1, 1, 3, 4])
