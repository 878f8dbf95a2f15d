"""The denoiser of a loop: what is counted, which grid is left, and in what order it is put together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.composition import compose
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import CountingDenoiser, Denoiser
from gen.diffusion.net import members, unwrap
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.precompute import evaluation_times
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Context

TIMES = torch.linspace(1, 0, 5, dtype=torch.float64)


class Table(nn.Module):
    """A network whose modulations can be had in advance, and which says what it was given."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        return x * cond.get("modulation", torch.zeros(len(x)))[:, None]

    def null(self, cond):
        return cond

    def modulation_table(self, t, cond):
        self.t = t
        return lambda i, cond: {**cond, "modulation": self.t[i].expand(2)}


class Both(Guide):
    """The sum of f and another network, from the second step on."""

    def __init__(self, other):
        self.other = other

    def other_denoisers(self):
        return (self.other,)

    def grid(self, times):
        return times[1:]

    def __call__(self, f, times, *others):
        (self.given,) = others
        self.times = times
        self.f = f
        return f


def test_every_network_is_precomputed_and_counted_under_the_guide():
    f, other = (Denoiser(Table(), Flow(), Velocity()) for _ in range(2))
    guide, x = Both(other), torch.randn(2, 3)
    loop = compose(f, TIMES, build("samplers.solvers", "heun"), guide, {}, x)
    assert torch.equal(loop.grid, TIMES[1:]) and torch.equal(guide.times, TIMES)
    assert loop.counters == (guide.f, guide.given) and all(isinstance(c, CountingDenoiser) for c in loop.counters)
    for network in (f.net, other.net):
        assert network.t.tolist() == pytest.approx([0.75, 0.5, 0.25])  # the times of the grid that is left
    guide.given(x, TIMES[2], {})
    got = loop.f(x, TIMES[1], {})
    torch.testing.assert_close(got.eps - got.x0, 0.75 * x)  # the network's output: the modulation times x
    assert loop.rows == 4 and [c.calls for c in loop.counters] == [1, 1]


def test_the_times_of_a_solver_are_known_before_its_loop():
    assert evaluation_times(Flow(), TIMES, build("samplers.solvers", "euler")) == [1.0, 0.75, 0.5, 0.25]
    assert evaluation_times(Flow(), [1.0, 0.0], build("samplers.solvers", "midpoint")) == [1.0, 0.5]


def test_a_contextual_tap_needs_a_network_that_calls_it():
    class Session:
        def bind(self, context: Context):
            return lambda site, compute, h: compute(h)

    f = Denoiser(Table(), Flow(), Velocity())
    with pytest.raises(UserError, match="the network calls no tap"):
        integrate(f, torch.randn(2, 3), TIMES, build("samplers.solvers", "euler"), tap=Session())


def test_members_are_read_through_a_wrapper():
    net = Table()
    net.state_shape, net.about = (3,), "by hand"
    wrapped = nn.Module()
    wrapped.module = net
    assert unwrap(wrapped) is unwrap(net) is net
    for read in (members(net), members(wrapped)):
        assert (read.state_shape, read.about, read.logvar) == ((3,), "by hand", None)
    assert members(nn.Identity()).state_shape is None
