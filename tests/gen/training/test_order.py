"""The order of data that are read group by group: every item once an epoch, from few groups at once, whoever asks."""

import numpy as np
import pytest

from gen.training.order import GroupOrder

SIZES = [5, 3, 9, 1, 0, 7, 4, 6, 8, 2, 5]  # 50 items


def steps(order, first, last, batch):
    return [[order.at(p) for p in range(s * batch, (s + 1) * batch)] for s in range(first, last)]


@pytest.mark.parametrize(("at_once", "batch"), [(1, 5), (3, 10), (4, 10), (16, 10), (3, 7), (2, 64)])
def test_every_item_comes_once_an_epoch_of_its_run_from_few_groups_at_once(at_once, batch):
    order, ends = GroupOrder(SIZES, at_once, batch, 0), np.cumsum(SIZES)
    taken = steps(order, 0, 60, batch)
    seen = [pair for step in taken for pair in step]
    assert len(set(seen)) == len(seen)  # none twice in one epoch
    whole = [{i for e, i in seen if e == epoch} for epoch in range(2)]
    assert whole == [set(range(50))] * 2
    counts = np.bincount([i for _, i in seen], minlength=50)
    assert counts.max() - counts.min() <= 2
    groups = [len({int(np.searchsorted(ends, i, "right")) for _, i in step}) for step in taken]
    runs = min(at_once, batch) if batch <= 50 else 1
    assert max(groups) <= runs * (1 + batch // runs) and len(set(map(tuple, taken[:9]))) == 9


def test_a_position_says_its_item_and_orders_depend_on_seed_and_epoch():
    one, other = GroupOrder(SIZES, 3, 10, 0), GroupOrder(SIZES, 3, 10, 0)
    forwards = [one.at(p) for p in range(200)]
    assert [other.at(p) for p in reversed(range(200))] == forwards[::-1]
    assert [GroupOrder(SIZES, 3, 10, 1).at(p) for p in range(200)] != forwards
    first, second = ([i for e, i in forwards if e == epoch] for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second)


def test_a_process_reads_the_groups_of_its_slices_alone():
    """Of two processes each has half of every batch; a group that lies across the middle is read by both."""
    sizes, ends = [10] * 20, np.cumsum([10] * 20)
    halves = [GroupOrder(sizes, 4, 8, 0) for _ in range(2)]
    read = [
        {int(np.searchsorted(ends, half.at(8 * s + j)[1], "right")) for s in range(50) for j in range(4 * k, 4 * k + 4)}
        for k, half in enumerate(halves)
    ]
    assert read == [set(range(10)), set(range(10, 20))] and halves[0].groups_needed == 4
