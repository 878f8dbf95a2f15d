"""Learning-rate schedules, averages, the order of the data."""

import importlib
import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.data.lib.tensors import Tensors
from gen.data.pairs import PairSet
from gen.data.text import Windows
from gen.pipeline import load
from gen.training.averages import Averages
from gen.training.ema import Classic
from gen.training.schedules import WSD, WSDS, Constant, Cosine, InverseSqrt, Linear, Refined, median_filter
from gen.training.stream import ShuffledStream, iterate_steps
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.mark.parametrize("name", names("training.schedules"))
def test_warmup_is_linear_and_ends_at_the_peak(name):
    schedule = build("training.schedules", name, warmup=10)
    assert [schedule.factor(n, 100) for n in range(10)] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert schedule.factor(10, 100) == pytest.approx(1)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(), {0: 1, 50: 1, 99: 1}),
        (Linear(floor=0.1), {0: 1, 50: 0.55, 100: 0.1}),
        (Cosine(), {0: 1, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0}),
        (InverseSqrt(flat=16), {0: 1, 16: 1, 64: 1 / 2, 100: 0.4}),
        (InverseSqrt(warmup=40, flat=10), {0: 1 / 40, 19: 0.5 / 1.9**0.5, 90: 1 / 3}),
        (WSD(decay=0.2), {0: 1, 79: 1, 80: 1, 90: 0.5, 100: 0}),
    ],
)
def test_schedules_pass_through_known_points(schedule, points):
    for update, factor in points.items():
        assert schedule.factor(update, 100) == pytest.approx(factor)


def test_wrong_schedules_are_refused():
    with pytest.raises(UserError, match="warmup = -1"):
        Cosine(warmup=-1)
    with pytest.raises(UserError, match="flat = 0"):
        InverseSqrt(flat=0)
    with pytest.raises(UserError, match="decay = 0"):
        WSD(decay=0)


def test_wsd_s_falls_to_each_end_and_jumps_back():
    schedule = WSDS(warmup=10, ends=(100, 400), decay=0.2, floor=0.1)
    factors = [schedule.factor(n, 1000) for n in range(1001)]
    for begin, end in ((10, 100), (100, 400), (400, 1000)):
        first = end - end // 5
        assert factors[begin : first + 1] == [1.0] * (first + 1 - begin)  # from the jump to the decay's first update
        share = [(n - first) / (end - first) for n in range(first, end)]
        assert [1 / f for f in factors[first:end]] == pytest.approx([1 + 9 * s for s in share])  # inverse-linear
        assert factors[end - 1] < 0.11 and factors[end] == (1.0 if end < 1000 else 0.1)
    steps = [b - a for a, b in itertools.pairwise(factors)]
    jumps = [n + 1 for n, step in enumerate(steps) if abs(step) > 0.5]
    assert jumps == [100, 400]  # elsewhere no step is longer than the steepest of the shortest decay, 9 / 20
    assert max(-step for step in steps) < 9 / 20


def test_wsd_s_may_decay_in_a_straight_line_to_nothing():
    schedule = WSDS(decay=0.5, floor=0.0, shape="linear")
    assert [schedule.factor(n, 8) for n in range(9)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert WSDS(ends=(90,), decay=0.9).factor(90, 100) == 1  # no decay begins before the end before it


def test_going_on_after_the_end_is_what_listing_it_gives():
    longer, listed = WSDS(), WSDS(ends=(100,))
    assert [longer.factor(n, 100) for n in range(100)] == [listed.factor(n, 100) for n in range(100)]
    assert [longer.factor(n, 300) for n in range(100, 300)] == [listed.factor(n, 300) for n in range(100, 300)]


def test_the_checkpoint_of_each_decay_is_kept_and_can_be_branched_from(tmp_path):
    schedule = WSDS(ends=(3, 5), decay=0.4)
    run = tiny(schedule=schedule, steps=12, save_every=2, keep=2)
    train(run, tmp_path / "run", quiet=True)
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == [checkpoints.checkpoint_name(n) for n in (3, 5, 10, 12)]
    decayed = tmp_path / "run/checkpoints/step-0000005"
    assert load(decayed).info["step"] == 5
    train(tiny(steps=2, init=str(decayed)), tmp_path / "branch", quiet=True)
    train(run, tmp_path / "again", resume=str(decayed), quiet=True)
    ends = [checkpoints.read(tmp_path / f / "final")["files"] for f in ("run", "again")]
    assert ends[0] == ends[1]  # to the byte


@pytest.mark.parametrize("total", [2, 3, 100, 777])
def test_constant_gradients_refine_to_linear_decay(total):
    expected = [1 - t / (total - 1) for t in range(total)]
    for schedule in (Refined(), Refined(norms=(0.3,) * 50), Refined(norms=(7.1,) * 50, power=1.0)):
        found = [schedule.factor(t, total) for t in range(total)]
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2.3e-16


def test_refinement_is_its_formula():
    norms = torch.rand(40, dtype=torch.float64) + 0.5
    for power in (1.0, 2.0):
        w = norms**-power
        expected = torch.stack([w[t] * w[t + 1 :].sum() for t in range(40)])
        found = Refined(norms=tuple(norms.tolist()), power=power).curve(40)
        assert found == pytest.approx((expected / expected.max()).tolist())


def test_high_gradients_at_the_start_become_a_warm_up():
    norms = tuple(10 / (1 + t) + 1 for t in range(100))
    found = [Refined(norms=norms).factor(t, 1000) for t in range(1000)]
    peak = found.index(max(found))
    assert 50 < peak < 500 and found[0] < 0.1 and found[peak] == 1.0 and found[-1] == 0.0
    assert found[:peak] == sorted(found[:peak]) and found[peak:] == sorted(found[peak:], reverse=True)


@pytest.mark.parametrize("n", [30, 101, 1500])
def test_smoothing_is_the_published_filter(n):
    ndimage = importlib.import_module("scipy.ndimage")
    import numpy as np

    norms = np.random.default_rng(0).lognormal(size=n)
    width = 2 * (int(0.1 * n) // 2) + 1
    padded = np.pad(norms, (0, min(2 * width, n - 1)), mode="reflect")
    expected = ndimage.median_filter(padded, size=width, mode="nearest")[:n]
    assert median_filter(norms.tolist(), 0.1).tolist() == expected.tolist()


def test_long_recordings_are_shortened_first():
    assert median_filter([2.5] * 100_000).tolist() == [2.5] * 2000
    rising = median_filter([float(i) for i in range(100_000)], window=0.01)
    assert len(rising) == 2000 and (rising.diff() >= 0).all() and float(rising[1000]) == pytest.approx(50_000, rel=1e-3)


def test_a_schedule_comes_from_a_run_and_its_spec_holds_all(tmp_path):
    train(tiny(steps=30, validate_every=0), tmp_path / "run", quiet=True)
    schedule = Refined.from_run(tmp_path / "run")
    assert len(schedule.norms) == 30 and build("training.schedules", spec_of(schedule)) == schedule
    done = train(tiny(steps=3, schedule=schedule, validate_every=0), tmp_path / "refined", quiet=True)
    assert done.step == 3
    train(tiny(steps=4, log_every=2, validate_every=0), tmp_path / "coarse", quiet=True)
    with pytest.raises(UserError, match=r"the gradient norm of 2 of 4 steps.*log_every 1"):
        Refined.from_run(tmp_path / "coarse")
    with pytest.raises(UserError, match=r"nowhere/metrics.jsonl cannot be read: No such file"):
        Refined.from_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: WSDS(decay=0), "decay = 0"),
        (lambda: WSDS(floor=0), "floor = 0"),
        (lambda: WSDS(ends=(20, 10)), r"ends = \[20, 10\]"),
        (lambda: WSDS(warmup=10, ends=(10,)), "from above warmup = 10"),
        (lambda: Refined(norms=(1.0, 0.0)), "norms = .*must be in"),
        (lambda: Refined(power=-1), "power = -1"),
    ],
)
def test_wrong_decays_are_refused(bad, words):
    with pytest.raises(UserError, match=words):
        bad()


def test_ema_warms_up_and_copies_buffers():
    net, profile = nn.BatchNorm1d(2), Classic(decay=0.9)
    averages = Averages([profile], {"net": net})
    average = averages.nets["net", "ema"]
    nn.init.constant_(net.weight, 3.0)
    net.running_mean.fill_(5.0)
    assert profile.decay_at(1) == pytest.approx(2 / 11)
    assert profile.decay_at(10**6) == 0.9
    averages.follow({"net": net})
    averages.update(1)
    assert torch.allclose(average.weight, torch.full((2,), 1 * 2 / 11 + 3 * 9 / 11))
    assert torch.equal(average.running_mean, net.running_mean)


class Numbers:
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"x": torch.tensor(float(i))}


def test_every_pass_holds_every_item_once_in_another_order():
    stream = ShuffledStream(Numbers(), seed=0)
    passes = [[int(stream[7 * k + i]["x"]) for i in range(7)] for k in range(3)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert [int(ShuffledStream(Numbers(), seed=0)[i]["x"]) for i in range(7)] == passes[0]


class Drawn(Tensors):
    def draw(self, i, key):
        return {"x": self.x[i] + key % 7}


ROWS = torch.arange(30, dtype=torch.uint8).reshape(10, 3)
IN_MEMORY = {
    "pictures": Tensors(ROWS, torch.arange(10), "", shift=8.0, scale=1 / 8),
    "no labels": Tensors(ROWS, None, ""),
    "text": Windows({"x": ROWS, "prompt": torch.arange(10)}, ""),
    "pairs": PairSet({"x": ROWS.float(), "origin": torch.arange(10)}, ""),
    "drawn": Drawn(ROWS, None, ""),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_batch_that_is_read_at_once_has_the_bits_of_its_items(name):
    stream, positions = ShuffledStream(IN_MEMORY[name], seed=0), list(range(5, 18))  # of two passes
    batch, items = stream.__getitems__(positions), default_collate([stream[p] for p in positions])
    assert batch.keys() == items.keys() and batch["index"].tolist() == positions
    assert all(torch.equal(batch[k], items[k]) and batch[k].dtype == items[k].dtype for k in items)


def places(start, share, rank, micro, steps=6):
    run = tiny(steps=steps, batch_size=4)
    found = iterate_steps(ShuffledStream(Numbers(), seed=0), run, start, share, rank, micro)
    return {step: torch.cat([i["index"] for i in items]).tolist() for step, items in found}


def test_places_do_not_depend_on_resuming_processes_or_micro_batches():
    whole = places(0, 4, 0, 4)
    assert list(whole) == list(range(6))
    assert places(4, 4, 0, 4) == {4: whole[4], 5: whole[5]}
    assert places(0, 4, 0, 2) == whole
    halves = [places(0, 2, rank, 1) for rank in (0, 1)]
    assert {step: halves[0][step] + halves[1][step] for step in whole} == whole
