"""Learning-rate schedules, averages, the order of the data."""

import math

import pytest
import torch
from torch import nn

from gen.ema import Classic
from gen.errors import UserError
from gen.run import Run
from gen.schedules import WSD, Constant, Cosine, Linear
from gen.spec import build, names
from gen.stream import Stream, batches


@pytest.mark.parametrize("name", names("schedules"))
def test_warmup_is_linear_and_ends_at_the_peak(name):
    schedule = build("schedules", name, warmup=10)
    assert [schedule.factor(n, 100) for n in range(10)] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert schedule.factor(10, 100) == pytest.approx(1)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(), {0: 1, 50: 1, 99: 1}),
        (Linear(floor=0.1), {0: 1, 50: 0.55, 100: 0.1}),
        (Cosine(), {0: 1, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0}),
        (WSD(decay=0.2), {0: 1, 79: 1, 80: 1, 90: 0.5, 100: 0}),
    ],
)
def test_schedules_pass_through_known_points(schedule, points):
    for update, factor in points.items():
        assert schedule.factor(update, 100) == pytest.approx(factor)


def test_wrong_schedules_are_refused():
    with pytest.raises(UserError, match="warmup = -1"):
        Cosine(warmup=-1)
    with pytest.raises(UserError, match="decay = 0"):
        WSD(decay=0)


def test_ema_warms_up_and_copies_buffers():
    net, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(net.weight, 3.0)
    net.running_mean.fill_(5.0)
    profile = Classic(decay=0.9)
    assert profile.decay_at(1) == pytest.approx(2 / 11)
    assert profile.decay_at(10**6) == 0.9
    profile.update(average, net, 1)
    assert torch.allclose(average.weight, torch.full((2,), 1 * 2 / 11 + 3 * 9 / 11))
    assert torch.equal(average.running_mean, net.running_mean)


class Numbers:
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"x": torch.tensor(float(i))}


def test_every_pass_holds_every_item_once_in_another_order():
    stream = Stream(Numbers(), seed=0)
    passes = [[int(stream[7 * k + i]["x"]) for i in range(7)] for k in range(3)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert [int(Stream(Numbers(), seed=0)[i]["x"]) for i in range(7)] == passes[0]


def places(start, share, rank, micro, steps=6):
    run = Run.__new__(Run)
    object.__setattr__(run, "steps", steps)
    object.__setattr__(run, "batch_size", 4)
    object.__setattr__(run, "workers", 0)
    found = batches(Stream(Numbers(), seed=0), run, start, share, rank, micro)
    return {step: torch.cat([i["index"] for i in items]).tolist() for step, items in found}


def test_places_do_not_depend_on_resuming_processes_or_micro_batches():
    whole = places(0, 4, 0, 4)
    assert list(whole) == list(range(6))
    assert places(4, 4, 0, 4) == {4: whole[4], 5: whole[5]}
    assert places(0, 4, 0, 2) == whole
    halves = [places(0, 2, rank, 1) for rank in (0, 1)]
    assert {step: halves[0][step] + halves[1][step] for step in whole} == whole
