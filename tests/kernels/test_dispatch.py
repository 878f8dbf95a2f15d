"""Dispatch: the first willing backend, all the arguments, and the reasons of the others."""

import inspect

import pytest
import torch

from gen.kernels.dispatch import Backend, Op, Refused, explain


def call(x, factor=2.0):
    """Multiplies."""
    return x, factor


def odd(x, factor):
    return "only odd factors" if factor % 2 == 0 else None


def never(x, factor):
    return "never in the mood"


def willing(x, factor):
    return None


def times(x, factor):
    return x * factor


def twice(x, factor):
    return x * factor * 2


OP = Op("times", call, (Backend("odd", odd, twice), Backend("never", never, times), Backend("plain", willing, times)))


def test_the_first_willing_backend_runs_with_every_argument():
    assert OP(3.0) == 6.0
    assert OP(3.0, 3.0) == 18.0
    assert OP(3.0, factor=4.0) == 12.0
    assert OP.__doc__ == "Multiplies."
    assert list(inspect.signature(OP).parameters) == ["x", "factor"]


def test_explain_prints_every_backend_and_runs_nothing(capsys):
    explain(OP, 3.0)
    assert capsys.readouterr().out.splitlines() == [
        "times",
        "  odd    refuses: only odd factors",
        "  never  refuses: never in the mood",
        "  plain  chosen",
    ]
    explain(OP, 3.0, factor=3.0)
    assert capsys.readouterr().out.splitlines()[1::2] == ["  odd    chosen", "  plain  willing"]
    explain(Op("loud", call, (Backend("a", willing, times, lambda x, factor: f"by {factor}"),)), 1.0)
    assert capsys.readouterr().out.splitlines() == ["loud", "  a  chosen (by 2.0)"]


def test_a_forced_backend_runs_or_says_why_not_in_one_line():
    assert OP.only("odd")(3.0, 3.0) == 18.0
    with pytest.raises(Refused, match=r"^times: odd refuses: only odd factors$"):
        OP.only("odd")(3.0)
    with pytest.raises(Refused, match=r"^times has no backend 'even'. Allowed: odd, never, plain.$"):
        OP.only("even")


def test_nobody_willing_names_everyone():
    with pytest.raises(Refused, match=r"^times: odd refuses: only odd factors; never refuses: never in the mood$"):
        Op("times", call, OP.backends[:2])(3.0)


def test_a_backend_that_would_drop_an_argument_is_no_backend():
    with pytest.raises(TypeError, match=r"short takes \['x'\]; the op's arguments are \['x', 'factor'\]"):
        Op("times", call, (Backend("short", willing, lambda x: x),))


def test_dispatch_keeps_a_compiled_graph_whole():
    compiled = torch.compile(lambda x: OP(x) + OP(x, 3.0), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 8.0))
