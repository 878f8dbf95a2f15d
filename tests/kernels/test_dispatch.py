"""Dispatch: the first back end that accepts a call, all its arguments, and the reasons of the others."""

import inspect
from typing import NamedTuple

import pytest
import torch

from gen.kernels.dispatch import Backend, Op, Refused, explain, op


class Call(NamedTuple):
    x: object
    factor: float


def only_odd(call):
    return "only odd factors" if call.factor % 2 == 0 else None


def never(call):
    return "never in the mood"


def once(call):
    return call.x * call.factor


def twice(call):
    return call.x * call.factor * 2


@op(Backend("odd", twice, only_odd), Backend("never", once, never), Backend("plain", once))
def times(x, factor=2.0):
    """Multiplies."""
    return Call(x, factor)


def test_the_first_accepting_backend_runs_with_every_argument():
    assert times(3.0) == 6.0
    assert times(3.0, 3.0) == 18.0
    assert times(3.0, factor=4.0) == 12.0
    assert times.name == "times"
    assert times.__doc__ == "Multiplies."
    assert list(inspect.signature(times).parameters) == ["x", "factor"]


def test_explain_prints_every_backend_and_runs_nothing(capsys):
    explain(times, 3.0)
    assert capsys.readouterr().out.splitlines() == [
        "times",
        "  odd    refuses: only odd factors",
        "  never  refuses: never in the mood",
        "  plain  chosen",
    ]
    explain(times, 3.0, factor=3.0)
    assert capsys.readouterr().out.splitlines()[1::2] == ["  odd    chosen", "  plain  accepts"]
    loud = Op("loud", times.complete, (Backend("a", once, detail=lambda call: f"by {call.factor}"),))
    assert loud.explain(1.0) == {"a": "chosen (by 2.0)"}


def test_a_forced_backend_runs_or_says_why_not_in_one_line():
    assert times.only("odd")(3.0, 3.0) == 18.0
    with pytest.raises(Refused, match=r"^times: odd refuses: only odd factors$"):
        times.only("odd")(3.0)
    with pytest.raises(Refused, match=r"^times has no backend 'even'. Allowed: odd, never, plain.$"):
        times.only("even")


def test_a_call_that_all_refuse_names_every_reason():
    with pytest.raises(Refused, match=r"^times: odd refuses: only odd factors; never refuses: never in the mood$"):
        Op("times", times.complete, times.backends[:2])(3.0)


def test_dispatch_keeps_a_compiled_graph_whole():
    compiled = torch.compile(lambda x: times(x) + times(x, 3.0), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 8.0))
