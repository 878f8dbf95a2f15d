"""Batches that grow: which samples a step sees, at what rate, and that nothing but the plan decides it."""

import pytest
import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.batch_plan import BatchPlan
from gen.training.log import read_metrics
from gen.training.run import run_from, run_spec
from gen.training.speed import SpeedMeter
from gen.training.stream import StepBatchSampler
from gen.training.trainer import train
from tests.gen.tiny import tiny

PLAN = BatchPlan((2, 3), (1, 4, 2), "sqrt")


def test_a_plan_is_the_sum_of_its_stages():
    assert [PLAN.factor(i) for i in range(5)] == [1, 1, 4, 2, 2]
    assert [PLAN.batches_before(i) for i in range(6)] == [0, 1, 2, 6, 8, 10]
    assert [PLAN.rate_factor(i) for i in range(4)] == [1, 1, 2, 2**0.5]
    assert [PLAN.until(i).ends for i in (0, 2, 3, 9)] == [(), (), (2,), (2, 3)]
    assert all(PLAN.until(n).factor(i) == PLAN.factor(i) for n in range(6) for i in range(n))
    run = tiny(batch_plan=PLAN, optim={"name": "adamw", "lr": 1.0}, schedule={"name": "constant", "warmup": 4})
    assert [run.learning_rate(i) for i in range(4)] == [0.25, 0.5, 1.5, 2**0.5]
    assert run.learning_rate(0, 2) == 0.5 and run_from(run_spec(run), None) == run
    for wrong in ({"ends": (3, 2), "factors": (1, 1, 1)}, {"ends": (3,)}, {"factors": ()}, {"factors": (0,)}):
        with pytest.raises(UserError, match="BatchPlan: "):
            BatchPlan(**wrong)


def test_every_sample_is_seen_once_in_order_however_processes_share_it():
    run = tiny(batch_plan=PLAN, steps=5)
    for world, micro in ((1, 8), (2, 2), (4, 1)):
        share = run.batch_size // world
        ranks = [list(StepBatchSampler(run, 0, share, rank, micro)) for rank in range(world)]
        assert all(len(batch) == micro for batches in ranks for batch in batches)
        at, seen = [0] * world, []
        for step in range(run.steps):
            for rank in range(world):
                n = share * PLAN.factor(step) // micro
                seen += [i for batch in ranks[rank][at[rank] : at[rank] + n] for i in batch]
                at[rank] += n
        assert seen == list(range(80))


def test_a_planned_step_has_the_bits_of_that_batch_and_what_is_done_cannot_be_planned_anew(tmp_path):
    common = {"validate_every": 0, "micro_batch_size": 4, "ema": ()}
    train(tiny(batch_size=16, steps=2, **common), tmp_path / "large", quiet=True)
    always = tiny(batch_size=8, steps=2, batch_plan=BatchPlan((), (2,)), **common)
    train(always, tmp_path / "twice", quiet=True)
    ends = [checkpoints.read(tmp_path / name / "checkpoints/step-0000002") for name in ("large", "twice")]
    assert ends[0]["files"] == ends[1]["files"] and ends[0]["samples_seen"] == ends[1]["samples_seen"] == 32
    rows = [
        [(e["loss"], e["grad_norm"], e["lr"]) for e in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("large", "twice")
    ]
    assert rows[0] == rows[1]
    with pytest.raises(UserError, match="batch_plan"):
        train(tiny(batch_size=8, steps=4, batch_plan=BatchPlan((1,), (2, 3)), **common), tmp_path / "twice", quiet=True)


def test_speed_counts_samples_and_operations_of_a_batch():
    run = tiny(batch_plan=PLAN, peak_tflops=1.0)
    meter = SpeedMeter.of(run, 2, torch.zeros(1, 8, 8), torch.device("cpu"))
    meter.counted(lambda: torch.ones(4, 2) @ torch.ones(2, 3))
    assert meter.flops == 2 * 4 * 2 * 3 // 4
