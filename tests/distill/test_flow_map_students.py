"""Students of sCM, MeanFlow and Shortcut on the line: after a fit of seconds they are the quantile map."""

import pytest

from gen.distill.meanflow import MeanFlow
from gen.distill.scm import SCM
from gen.distill.shortcut import Shortcut
from gen.param import Flow as FlowParam
from gen.param import V
from gen.path import Flow, Trig
from gen.samplers.solvers.jump import Jump
from gen.samplers.solvers.renoise import Renoise
from gen.times import Uniform
from tests.distill.line import fit, miss, student, world


@pytest.mark.parametrize(("path", "param"), [(Trig(), V()), (Flow(), FlowParam())], ids=["trig", "flow"])
def test_scm(path, param):
    method = SCM(times=Uniform(), warmup=250, adaptive=False, derivative="difference")
    f = fit(method, student(path, param, False), world(path), steps=1000, n=128)
    assert miss(f, world(path), Renoise(), [path.t1, 0.0]) < 1e-2


def test_meanflow():
    method = MeanFlow(times=Uniform(), equal=0.25, velocity="teacher", derivative="difference")
    f = fit(method, student(Flow(), FlowParam(), True), world(), steps=1000, n=128)
    assert miss(f, world(), Jump(), [1.0, 0.0]) < 1e-2
    assert miss(f, world(), Jump(), [1.0, 0.5, 0.0]) < 1e-2


def test_shortcut():
    method = Shortcut(steps=64, bootstrap=0.75, decay=0.9, velocity="teacher", clip=None)
    f = fit(method, student(Flow(), FlowParam(), True), world(), steps=1000, n=128)
    assert miss(f, world(), Jump(), [1.0, 0.0]) < 1e-2
    assert miss(f, world(), Jump(), [1.0, 0.5, 0.0]) < 1e-2
