"""Noise that a thread draws a step ahead: the same bits, whatever was guessed."""

import threading

import pytest
import torch

from gen.diffusion.noise import Noise
from gen.training.noise_ahead import NoiseAhead, step_noise
from gen.training.trainer import Trainer
from tests.gen.tiny import tiny


@pytest.fixture
def drawn(monkeypatch):
    """Whether each draw of normal numbers was made in another thread than this one."""
    threads, normal, here = [], Noise.normal, threading.current_thread()

    def recorded(noise, name, shape):
        threads.append(threading.current_thread() is not here)
        return normal(noise, name, shape)

    monkeypatch.setattr(Noise, "normal", recorded)
    return threads


def indices(step, *, size=4, micro=2):
    return [list(range(i, i + micro)) for i in range(step * size, step * size + size, micro)]


def test_numbers_are_the_same_and_drawn_in_the_thread_from_the_third_step_on(drawn):
    ahead = NoiseAhead(seed=3, processes=1, pin=False)
    for step in range(5):
        for ours, theirs in zip(ahead(step, indices(step)), step_noise(3, step, indices(step)), strict=True):
            assert ours.seeds == theirs.seeds
            shape = (3,) if step < 4 else (5,)  # another one than was guessed
            drawn.clear()
            a = ours.normal("eps", shape)
            assert (False in drawn) == (step not in (2, 3))
            b = ours.normal("eps", shape)  # once more: drawn anew, nobody has it twice
            assert a is not b and torch.equal(a, b) and torch.equal(a, theirs.normal("eps", shape))
            assert torch.equal(ours.uniform("t"), theirs.uniform("t"))
            assert torch.equal(ours.uniform("t", 3), theirs.uniform("t", 3))
            assert torch.equal(ours.integers("step", 7), theirs.integers("step", 7))


def test_another_step_than_the_next_is_drawn_anew():
    ahead = NoiseAhead(seed=0, processes=1, pin=False)
    for step in (0, 1, 7, 3):
        (ours, _), (theirs, _) = ahead(step, indices(step)), step_noise(0, step, indices(step))
        assert torch.equal(ours.normal("eps", (2,)), theirs.normal("eps", (2,)))


def test_a_run_has_the_same_bits(tmp_path):
    weights = []
    for ahead in (False, True):
        trainer = Trainer(tiny(micro_batch_size=4, validate_every=0), tmp_path / str(ahead), "never", "", True)
        if ahead:
            trainer.noise = NoiseAhead(trainer.run.seed, 1, pin=False)
        trainer._open()
        for micro_batches in trainer.batches():
            trainer.step(micro_batches)
        trainer.output.close()
        weights.append(torch.cat([p.flatten() for p in trainer.nets["net"].parameters()]))
    assert torch.equal(*weights)
