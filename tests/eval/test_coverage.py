"""Coverage and recall by hand on the line, on equal, distant and halved sets, and their errors in repeated draws."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.metrics.coverage import Coverage
from gen.eval.metrics.recall import Recall


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
