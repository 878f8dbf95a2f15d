"""Students of flow maps from a run folder: sCM, MeanFlow and Shortcut on digits, resumed in the middle to the bit."""

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny

CHANGES = {
    "scm": {"objective.warmup": 4},
    "meanflow": {"objective.flow_share": 0.5},
    "shortcut": {"objective.ema_decay": 0.5},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train(tiny(steps=2, validate_every=0), tmp_path_factory.mktemp("teacher") / "run", quiet=True).folder


@pytest.mark.parametrize("method", CHANGES)
def test_a_student_from_a_run_folder_and_its_resume(method, teacher, tmp_path):
    changes = {"steps": 4, "validate_every": 4, **CHANGES[method]}
    whole = gen.distill(method, teacher, tmp_path / "whole", changes=changes, quiet=True)
    assert whole.val_loss is not None and whole.val_loss >= 0
    pipeline = whole.pipeline()
    made = pipeline.sample(3)
    assert made.nfe == 1 and made.x.shape == (3, 1, 8, 8) and bool(torch.isfinite(made.x).all())
    gen.distill(method, teacher, tmp_path / "parts", changes={**changes, "steps": 2}, quiet=True)
    parts = gen.distill(method, teacher, tmp_path / "parts", changes=changes, quiet=True)
    for ours, theirs in zip(
        parts.pipeline().denoiser.net.state_dict().values(), pipeline.denoiser.net.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_no_gradient_reaches_the_teacher(teacher, tmp_path):
    """And the student begins with the teacher's weights."""
    for method in ("scm", "meanflow", "shortcut"):
        made = gen.config.spec.build("distillers", {"name": method, "velocity": "teacher"})
        run = made.student(tiny(), teacher, tmp_path)
        trainer = Trainer(run, tmp_path / method, "never", "test", True)
        first = next(iter(trainer._batches()))
        f, taught = trainer.roles["net"], trainer.roles["teacher"]
        x, t = first[0].x, torch.full((8,), 0.5, dtype=torch.float64)
        torch.testing.assert_close(f.output(x, t, first[0].cond), taught.output(x, t, first[0].cond))
        before = [p.clone() for p in taught.net.parameters()]
        trainer.step(first)
        assert all(p.grad is None for p in taught.net.parameters())
        assert all(map(torch.equal, before, taught.net.parameters()))


def test_a_network_of_one_time_is_refused_in_one_line(tmp_path):
    for method in ("meanflow", "shortcut"):
        with pytest.raises(UserError, match="no flow map"):
            train(tiny(objective=method), tmp_path / method, quiet=True)
