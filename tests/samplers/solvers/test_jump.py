"""Jump asks the denoiser where it is and where it goes."""

from __future__ import annotations

import pytest
import torch

from gen.diffusion.path import Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.jump import Jump


def test_the_target_time_reaches_the_denoiser():
    asked = []

    class Spy:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            asked.append((float(t), float(s)))
            return Prediction(x, x)

    integrate(Spy(), torch.zeros(1, 1, dtype=torch.float64), [1.0, 0.4, 0.0], Jump())
    assert asked == [(1.0, 0.4), (0.4, 0.0)]


@pytest.mark.parametrize("stop", [0.0, 0.25])
def test_an_exact_flow_map_may_stop_anywhere(stop):
    world = Gaussian(Flow(), torch.tensor([1.0, -2.0]).double(), torch.tensor([0.3, 1.5]).double())
    x, t, s = torch.randn(8, 2, dtype=torch.float64), torch.ones(()).double(), torch.tensor(stop).double()
    torch.testing.assert_close(integrate(world, x, [1.0, stop], Jump()), world.flow(x, t, s), rtol=0, atol=1e-12)
