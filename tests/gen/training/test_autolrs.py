"""AutoLRS: its forecast and its search against what is known, and that the plan alone gives the same weights."""

import math
from itertools import pairwise

import pytest

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.schedules import Steps
from gen.training.trainer import train
from gen.training.tuning.autolrs import AutoLRS, forecast, next_rate
from tests.gen.tiny import tiny


def test_a_curve_is_forecast_exactly():
    for a, b, c, n in ((1.3, 0.02, 0.4, 100), (0.5, 0.3, 2.0, 12), (2.0, 0.004, 0.1, 60)):
        losses = [a * math.exp(-b * t) + c for t in range(n)]
        for step in (n, 10 * n):
            assert forecast(losses, step) == pytest.approx(a * math.exp(-b * step) + c, rel=1e-6)
    assert forecast([1.0, math.nan, 1.0], 9) == math.inf
    assert forecast([0.5] * 9, 100) == pytest.approx(0.5)


def test_the_best_rate_of_a_noisy_quadratic_is_found():
    """E (1 - lr)^(2 tau) + lr / (2 - lr): the loss after tau steps at lr, of variance 1 at the start."""
    tau, tried, losses = 40, [], []

    def loss(rate):
        return (1 - rate) ** (2 * tau) + 0.05 * rate / (2 - rate)

    best = min((10 ** (i / 1000) for i in range(-3000, 0)), key=loss)
    for kappa, worse in ((1.0, 1.01), (1e6, 2.0)):  # the second spreads ten rates evenly
        tried, losses = [], []
        for _ in range(10):
            tried.append(next_rate(tried, losses, 1e-3, 1.0, kappa))
            losses.append(loss(tried[-1]))
        assert min(losses) < worse * loss(best)
        assert len({round(math.log(rate), 9) for rate in tried}) > 5
    gaps = sorted(map(math.log, tried))
    assert max(b - a for a, b in pairwise(gaps)) < 2 * math.log(1e3) / 9
    assert 1e-3 <= next_rate([0.1], [math.inf], 1e-3, 1.0, 1.0) <= 1.0


def test_a_run_is_searched_stage_by_stage_and_its_schedule_gives_its_weights(tmp_path):
    run = tiny(steps=9, validate_every=0, ema=())
    tuner = AutoLRS(first=3, tries=2, low=1e-3, high=1e3)
    assert tuner.stages(9) == [(0, 3), (3, 9)] and AutoLRS(2, 4).stages(13) == [(0, 2), (2, 6), (6, 10), (10, 13)]
    best = tuner.tune(run, tmp_path / "run", quiet=True)
    assert isinstance(best.schedule, Steps) and best.schedule.ends == (3,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    train(best, tmp_path / "again", quiet=True)
    ends = [checkpoints.read(tmp_path / name / "final")["files"] for name in ("run", "again")]
    assert ends[0] == ends[1] and tuner.tune(run, tmp_path / "run", quiet=True) == best
    with pytest.raises(UserError, match="allowed is constant, not Cosine"):
        tuner.tune(tiny(schedule="cosine"), tmp_path / "none")
    with pytest.raises(UserError, match=r"low = 2.0 is above high = 1.0"):
        AutoLRS(low=2.0, high=1.0)
