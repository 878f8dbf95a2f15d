"""The stopwatch, against a clock that the test holds."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from gen.config.errors import UserError
from gen.eval.throughput import Throughput
from gen.training.speed import peak_mb


@dataclass
class Clock:
    """Time that passes only when a fake sampler spends it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def sampler(clock: Clock, seconds):
    """Takes `seconds` per image, or the next of several values."""
    spent = iter(seconds) if isinstance(seconds, list) else None

    def run(batch: int) -> SimpleNamespace:
        clock.now += batch * (seconds if spent is None else next(spent))
        return SimpleNamespace(nfe=4.0)

    return run


def test_ratio_of_two_samplers_is_exact() -> None:
    clock = Clock()
    timer = Throughput(batch=10, seconds=1.0, clock=clock)
    slow, fast = timer.measure(sampler(clock, 0.02)), timer.measure(sampler(clock, 0.01))
    assert slow.ms_per_image == pytest.approx(20) and fast.images_per_second == pytest.approx(100)
    assert slow.ms_per_image / fast.ms_per_image == pytest.approx(2.0)
    assert fast.nfe == 4.0 and fast.batch == 10 and fast.steady and fast.p10 == pytest.approx(fast.p90)


def test_warm_up_is_thrown_away() -> None:
    clock = Clock()
    times = [0.5, 0.1, 0.02, 0.01, 0.01, 0.01] + [0.01] * 20
    speed = Throughput(batch=1, seconds=100, clock=clock).measure(sampler(clock, times))
    assert speed.warmup == 6 and speed.steady and speed.blocks == 20
    assert speed.ms_per_image == pytest.approx(10) and speed.p90 == pytest.approx(10)


def test_restless_sampler_is_measured_in_bounded_time_and_says_so() -> None:
    clock = Clock()
    times = [0.01, 0.03] * 50
    speed = Throughput(batch=1, warmup=7, blocks=9, seconds=100, clock=clock).measure(sampler(clock, times))
    assert not speed.steady and speed.warmup == 7 and speed.blocks == 9
    assert speed.p10 == pytest.approx(10) and speed.p90 == pytest.approx(30)


def test_stops_when_the_time_is_up_but_never_below_five_blocks() -> None:
    clock = Clock()
    speed = Throughput(batch=1, seconds=2.0, clock=clock).measure(sampler(clock, 10.0))
    assert speed.blocks == 5 and speed.warmup == 1 and clock.now == 60.0


def test_measures_real_time_and_memory() -> None:
    speed = Throughput(batch=2, blocks=5, warmup=1, seconds=0.01).measure(lambda batch: sum(range(10000)))
    assert speed.ms_per_image > 0 and speed.nfe is None
    assert 10 < speed.peak_mb <= peak_mb() < 1e6  # a process with torch in it, in MiB


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"blocks": 4}, {"warmup": 0}, {"within": 0.0}, {"seconds": 0.0}])
def test_refuses_settings_that_measure_nothing(wrong) -> None:
    with pytest.raises(UserError, match="at least 1"):
        Throughput(**wrong)


def test_refuses_a_clock_that_stands_still() -> None:
    with pytest.raises(UserError, match="the clock did not move"):
        Throughput(clock=lambda: 0.0).measure(lambda batch: None)
