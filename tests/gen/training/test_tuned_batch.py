"""Batches that the norm test lets grow: its closed form, and that the plan alone gives the same training."""

import pytest
import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.trainer import train
from gen.training.tuning.adadagrad import AdAdaGrad, norm_test
from tests.gen.tiny import tiny


def test_the_norm_test_is_that_of_a_quadratic():
    """Gradients x - z of E |x - z|^2 / 2 in R^20, z of variance 1, |x|^2 = 1.8, eta .5: b = 20 / (.25 1.8) = 44.4."""
    x = torch.zeros(20, dtype=torch.float64)
    x[0] = 1.8**0.5
    z = torch.randn(4000, 16, 20, dtype=torch.float64)
    assert 44 <= norm_test((x - z).mean(1), 16, 0.5) <= 46
    pair = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)  # mean (2, 2), tr Var of a sample 3 (5 + 5)
    assert norm_test(pair, 3, 1.0) == 4 and norm_test(pair, 3, 0.5) == 15 and norm_test(pair, 3, 100.0) == 1


def test_a_plan_that_was_found_trains_the_same_without_the_controller(tmp_path):
    run = tiny(steps=4, validate_every=0, ema=(), optim={"name": "adamw", "lr": 1e-3})
    tuner = AdAdaGrad(every=1, eta=0.1, largest=3)
    found = tuner.tune(run, tmp_path / "found", quiet=True)
    assert found.batch_plan.factors[-1] > 1 and set(found.batch_plan.ends) <= {1, 2, 3}
    train(found, tmp_path / "again", quiet=True)
    ends = [checkpoints.read(tmp_path / name / "checkpoints/step-0000004") for name in ("found", "again")]
    assert ends[0]["files"] == ends[1]["files"] and ends[0]["samples_seen"] == ends[1]["samples_seen"] > 32
    assert tuner.tune(run, tmp_path / "found", quiet=True) == found
    for wrong, said in (
        ({"schedule": "cosine"}, "Cosine depends on the number of steps"),
        ({"micro_batch_size": 8}, "needs two micro-batches"),
    ):
        with pytest.raises(UserError, match=said):
            tuner.tune(tiny(**wrong), tmp_path / "none")
