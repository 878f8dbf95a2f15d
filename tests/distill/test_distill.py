"""gen.distill: a function that may be inspected and pickled; every distiller keeps the contract."""

import inspect
import pickle

import pytest

import gen
from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.training import distillation, trainer
from gen.training.distillation import Distiller, teacher_run
from gen.training.trainer import train
from tests.gen.tiny import tiny


def test_the_verbs_are_the_functions_themselves():
    assert inspect.signature(gen.distill) == inspect.signature(distillation.distill)
    assert list(inspect.signature(gen.distill).parameters)[:3] == ["method", "teacher", "out"]
    assert inspect.isfunction(gen.distill) and gen.distill.__doc__.startswith("Distil the run")
    for verb in (gen.train, gen.distill, gen.decode):
        assert pickle.loads(pickle.dumps(verb)) is verb
    assert gen.train is trainer.train and gen.distill is distillation.distill


@pytest.mark.parametrize("name", names("distillers"))
def test_every_distiller_keeps_the_contract(name):
    method, contract = type(build("distillers", name)), {"student", "roles", "__call__", "validate"}
    assert contract == {m for m in contract if m in vars(Distiller) or m in vars(Distiller.__mro__[1])}
    for member in contract:
        ours, theirs = (list(inspect.signature(getattr(c, member)).parameters) for c in (method, Distiller))
        assert ours == theirs, member


def test_unknown_methods_and_keys_are_named(tmp_path):
    teacher = train(tiny(steps=1, validate_every=0), tmp_path / "teacher", quiet=True)
    with pytest.raises(UserError, match="Did you mean 'reflow'"):
        gen.distill("reflwo", teacher.folder, tmp_path / "student")
    with pytest.raises(UserError, match="Did you mean 'huber'"):
        gen.distill("reflow", teacher.folder, tmp_path / "student", changes={"objective.hubr": 1})
    assert not (tmp_path / "student").exists()
    assert teacher_run(teacher.folder).steps == 1
