"""Neighbour metrics by hand on the line, on equal, distant and halved sets, their errors, and shared distances."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.metrics.coverage import Coverage
from gen.eval.metrics.density import Density
from gen.eval.metrics.lib import balls, neighbours
from gen.eval.metrics.precision import Precision
from gen.eval.metrics.recall import Recall
from gen.eval.reference import measure_together


def line(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_by_hand():
    real = line(0, 1, 2, 10)  # to the next but one: 2, 1, 2, 9
    assert Coverage(nearest=2)(line(0.5, 100), real).value == 0.75  # strictly inside of 0's, 1's and 2's; 9.5 from 10
    assert Coverage(nearest=2)(line(2, 100), real).value == 0.5  # on the edge of 0's and 1's: not inside; 8 < 9 from 10
    made = line(0, 1, 2, 30)  # to the next: 1, 1, 1, 28
    assert Recall(nearest=1, groups=4)(made, line(-1, 2.5, 3, 29, 60)).value == 0.8  # the edge counts
    assert Recall(nearest=1, groups=4)(made, line(-1.1, 60)).value == 0


def test_equal_sets_have_all_and_distant_ones_nothing():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for metric in (Coverage(), Recall()):
        assert metric(x, x).value == 1
        assert metric(x + 100, x).value == 0 == metric(x + 100, x).se


@pytest.mark.parametrize(("metric", "wide"), [(Coverage(), 1.35), (Recall(), 2.2)], ids=["coverage", "recall"])
def test_half_the_modes_are_half_and_errors_are_the_spread_of_draws(metric, wide):
    generator = torch.Generator().manual_seed(1)

    def draw(n, modes):
        centre = torch.randint(modes, (n, 1), generator=generator) * 50.0
        return centre + torch.randn(n, 2, generator=generator)

    real = draw(1000, 4)
    both, half = metric(draw(1000, 4), real), metric(draw(500, 2), real)
    assert half.value == pytest.approx(both.value / 2, abs=0.04) and both.value > 0.9
    few = [metric(draw(60, 4), real) for _ in range(60)]
    spread = float(torch.tensor([e.value for e in few]).std())
    assert 0.65 * spread < sum(e.se for e in few) / 60 < wide * spread


def test_refuses_what_it_cannot_count():
    x = torch.zeros(5, 3)
    with pytest.raises(UserError, match="5 reference"):
        Coverage()(x, x)
    with pytest.raises(UserError, match="4 samples; it needs at least"):
        Recall()(x[:4], x)
    for wrong in (lambda: Coverage(nearest=0), lambda: Recall(nearest=0), lambda: Recall(groups=1)):
        with pytest.raises(UserError, match="must be in"):
            wrong()


METRICS = [Precision(), Recall(), Density(), Coverage(), Precision(nearest=5, strict=True), Recall(groups=4)]


def blocks(monkeypatch, of_two_sets, of_one):
    for name, size in zip(("ROWS", "COLUMNS", "SIDE"), (*of_two_sets, of_one), strict=True):
        monkeypatch.setattr(neighbours, name, size)


def test_distances_are_computed_once_for_all_metrics(monkeypatch):
    x, y = torch.randn(2, 90, 3, generator=torch.Generator().manual_seed(0))
    x, pairs = x[:70], []
    blocks(monkeypatch, (16, 32), 32)
    whole = neighbours.expanded
    monkeypatch.setattr(neighbours, "expanded", lambda a, b, *rest: pairs.append(len(a) * len(b)) or whole(a, b, *rest))
    alone = [metric(x, y) for metric in METRICS]
    pairs.clear()
    together = measure_together(METRICS, lambda metric: (x, y))
    assert [estimates for _, estimates in together] == [[estimate] for estimate in alone]
    assert sum(pairs) <= 70 * 90 + (70 * 102 + 90 * 122) / 2  # of each set the blocks on and above the diagonal
    few = measure_together([Precision(), Recall()], lambda metric: (x[:4], y))
    assert few == []  # one of them cannot be computed: then each alone says so


def test_blocks_change_nothing(monkeypatch):
    x, y = torch.randn(2, 120, 3, generator=torch.Generator().manual_seed(1)).mul_(8).round_()  # many ties
    whole = [metric(x[:110], y) for metric in METRICS]
    for sizes in (((7, 19), 11), ((64, 32), 50)):
        blocks(monkeypatch, *sizes)
        assert [metric(x[:110], y) for metric in METRICS] == whole
    own = neighbours.OwnNeighbours(x).nearest(4)
    distances = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf) ** 2
    torch.testing.assert_close(own[0], distances.topk(4, largest=False).values)
    torch.testing.assert_close(own[0], distances.gather(1, own[1]))


def test_groups_that_hold_all_near_neighbours(monkeypatch):
    x, y = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(2))
    usual = Recall()(x, y)
    monkeypatch.setattr("gen.eval.metrics.recall.SPARE", 0)  # as few neighbours as there can be: it looks for more
    assert Recall()(x, y) == usual


def test_a_reduced_number_is_drawn_of_both_sets():
    x, y = torch.randn(2, 80, 3, generator=torch.Generator().manual_seed(3))
    for kind in (Precision, Recall, Density, Coverage):
        reduced = kind(reduced_n=50)(x, y)
        assert reduced.n == 50 and reduced.value != kind()(x, y).value
        assert kind(reduced_n=70)(x, y[:40]).n == 40  # equal numbers
        drawn = (rows[balls.subset(80, 50, seed)] for seed, rows in enumerate((x, y)))
        assert reduced == kind()(*drawn)
    both = balls.share_distances([Precision(), Precision(reduced_n=50)], x, y)
    assert both == [Precision()(x, y), Precision(reduced_n=50)(x, y)]
