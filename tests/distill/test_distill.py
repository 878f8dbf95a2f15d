"""gen.distill: a function that may be inspected and pickled; every distiller keeps the contract."""

import inspect
import pickle

import pytest

import gen
from gen.config.errors import UserError
from gen.training import distillation, trainer
from gen.training.distillation import teacher_run


def test_the_verbs_are_the_functions_themselves():
    assert inspect.signature(gen.distill) == inspect.signature(distillation.distill)
    assert list(inspect.signature(gen.distill).parameters)[:3] == ["method", "teacher", "out"]
    assert inspect.isfunction(gen.distill) and gen.distill.__doc__.startswith("Distil the run")
    for verb in (gen.train, gen.distill, gen.decode):
        assert pickle.loads(pickle.dumps(verb)) is verb
    assert gen.train is trainer.train and gen.distill is distillation.distill


def test_unknown_methods_and_keys_are_named(teacher, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'reflow'"):
        gen.distill("reflwo", teacher, tmp_path / "student")
    with pytest.raises(UserError, match="Did you mean 'huber'"):
        gen.distill("reflow", teacher, tmp_path / "student", changes={"objective.hubr": 1})
    assert not (tmp_path / "student").exists()
    assert teacher_run(teacher).steps == 4
