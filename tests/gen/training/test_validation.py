"""Validation: in micro-batches of the run's size, with a loss that does not depend on how the data are cut."""

from dataclasses import replace

import pytest
from torch import nn

from gen.training.recipes.lists import lists
from gen.training.trainer import Trainer
from tests.gen.tiny import tiny


def seen_rows(trainer):
    """Validate and return the loss, and the most rows that the network saw at once."""
    rows = []
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        loss = trainer.validate()
    finally:
        hook.remove()
    return loss, max(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "micro"), [(8, None), (8, 2), (64, 16), (512, None)])
def test_the_network_sees_no_more_than_a_micro_batch(tmp_path, batch, micro, monkeypatch):
    monkeypatch.setattr("gen.training.trainer.VALIDATION_SAMPLES", 512)
    run = tiny(batch_size=batch, micro_batch_size=micro, steps=1)
    trainer = Trainer(run, tmp_path / "run", "never", "test", True)
    loss, rows = seen_rows(trainer)
    assert rows == min(micro or batch, len(trainer.held_out))
    trainer.micro = 512
    assert seen_rows(trainer)[0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("objective", ["mdlm", "llada", "bd3", "fast_dllm"])
def test_text_too(tmp_path, objective):
    run = replace(lists(), objective=objective, steps=1, batch_size=12, sample_every=0)
    trainer = Trainer(run, tmp_path / "run", "never", "test", True)
    values = []
    for trainer.micro in (20, 12, 3):
        values.append(trainer.validate())
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-6)
