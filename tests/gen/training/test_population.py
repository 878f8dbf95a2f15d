"""Population-based training: its selection, and that the winner's schedule alone gives the winner's weights."""

import pytest

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.reading import parse_json
from gen.training.run import run_from, run_spec
from gen.training.schedules import Steps
from gen.training.trainer import train
from gen.training.tuning.population import Population, replacements
from tests.gen.tiny import tiny


def test_the_worst_are_replaced_by_some_of_the_best():
    losses = [0.3, 0.1, 0.9, 0.2, 0.8]
    assert replacements(losses, 0.2, [0.99] * 5) == {2: 1}
    assert replacements(losses, 0.4, [0.0] * 5) == {2: 1, 4: 1}
    assert replacements(losses, 0.4, [0.5] * 5) == {2: 3, 4: 3}
    assert replacements([1.0, 0.0], 0.2, [0.0, 0.0]) == {0: 1}


def test_the_rate_of_a_quadratic_is_found_beyond_the_members_first_ones():
    """x <- (1 - lr) x falls fastest at lr 1."""
    rates, states = [0.1, 0.2, 0.3, 0.4], [1.0] * 4
    alone = min(abs((1 - rate) ** 60) for rate in rates)
    for number in range(20):
        states = [state * (1 - rate) ** 3 for state, rate in zip(states, rates, strict=True)]
        for worst, best in replacements([abs(s) for s in states], 0.25, [0.0] * 4).items():
            states[worst], rates[worst] = states[best], rates[best] * (1.2 if number % 2 else 1 / 1.2)
    assert min(map(abs, states)) < 1e-3 * alone and 0.7 < max(rates) < 1.3


def test_the_winner_s_schedule_gives_its_weights(tmp_path):
    run = tiny(steps=4, validate_every=4, ema=())
    tuner = Population(every=2, members=2, spread=8.0)
    best = tuner.tune(run, tmp_path / "all", quiet=True)
    assert isinstance(best.schedule, Steps) and run_from(run_spec(best), None) == best
    rows = parse_json((tmp_path / "all/population.json").read_text(), "it")["generations"]
    assert [row["step"] for row in rows] == [2, 4] and len(set(rows[0]["losses"])) == 2
    winner = min((0, 1), key=lambda i: rows[-1]["losses"][i])
    assert [rows[-1]["rates"][winner]] == pytest.approx([best.learning_rate(3)])
    train(best, tmp_path / "again", quiet=True)
    ends = [checkpoints.read(tmp_path / name / "final")["files"] for name in (f"all/member-{winner}", "again")]
    assert ends[0] == ends[1]
    worst = max((0, 1), key=lambda i: rows[0]["losses"][i])
    changed = rows[1]["rates"][worst] / rows[0]["rates"][1 - worst]
    assert changed == pytest.approx(1.2) or changed == pytest.approx(1 / 1.2)
    with pytest.raises(UserError, match="already holds a population"):
        tuner.tune(run, tmp_path / "all", quiet=True)
    for wrong, said in (({"validate_every": 0}, "validate_every = 0"), ({"schedule": "cosine"}, "depends on the")):
        with pytest.raises(UserError, match=said):
            tuner.tune(tiny(**wrong), tmp_path / "none")
