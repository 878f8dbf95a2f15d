"""Along the ODE: the curvature of a Gaussian's paths in closed form, and the way up is the way down."""

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.worlds import Gaussian
from gen.distillers.lib.trajectory import curvature, invert
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.jump import Jump
from tests.distill.line import world
from tests.distill.tables import MEAN, Straight, end_of, gaussian, off, spread

PATHS = [Flow(), Trig(), VP(), EDM(8.0)]


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_curvature_of_a_gaussian_is_known(std):
    """With alpha = 1 a path of unit scale has slope n / sqrt(std^2 + n^2): the variance of that over n in [0, N]."""
    top = 8.0
    one = Gaussian(EDM(top), torch.zeros(1).double(), torch.tensor([std]).double())
    x = spread(400) * math.hypot(std, top)
    mean = (math.hypot(std, top) - std) / top
    exact = (1 - std / top * math.atan(top / std) - mean**2) * float((spread(400) ** 2).mean())
    grid = torch.linspace(top, 0, 501, dtype=torch.float64)
    assert curvature(one, x, grid, solver=Heun()) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_paths_that_one_step_can_walk_have_no_curvature(path):
    """Straight in x / alpha and sigma / alpha, which on Trig and VP is bent in t."""
    grid = torch.linspace(path.t1, 0, 9, dtype=torch.float64)
    x = path.start(torch.randn(50, 3, dtype=torch.float64), grid[0])
    assert curvature(gaussian(path), x, grid) > 1e-3
    assert curvature(Straight(path).denoiser(), x, grid) < 1e-20 * path.t1**2


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_an_inversion_finds_the_noise(path):
    f, z = world(path), spread(200)
    times = torch.linspace(path.t1, 0, 201, dtype=torch.float64)
    if isinstance(path, (VP, EDM)):  # both ends of the grid: EDM's networks are not told t = 0, VP's slope is infinite
        times[-1] = times[-2] * 1e-3
    low = times[-1].expand(len(z))
    start = path.start(z, times[0])
    x = f.flow(start, times[0].expand(len(z)), low)
    assert off(invert(f, x, times, Heun()), start) < 5e-3


def test_an_inversion_walks_the_sampler_s_own_steps():
    """One Euler step up from x is where the slope at x leads."""
    f, x = gaussian(), torch.randn(5, 3, dtype=torch.float64)
    times = torch.tensor([0.7, 0.2], dtype=torch.float64)
    up = invert(f, x, times, Euler())
    assert torch.allclose(up, x + 0.5 * f.path.velocity(f(x, times[1]), times[1]), atol=1e-12)


def test_only_rules_that_follow_the_ode_can_be_inverted():
    with pytest.raises(UserError, match="Jump does not follow the ODE"):
        invert(gaussian(), MEAN[None], torch.tensor([1.0, 0.0]), Jump())


def test_the_exact_student_s_one_step_is_the_flow_map():
    z = torch.randn(9, 3, dtype=torch.float64)
    for path in PATHS:
        top = torch.tensor(path.t1, dtype=torch.float64)
        once = Straight(path).denoiser()(path.mix(end_of(gaussian(path), z), z, top), top).x0
        assert torch.allclose(once, end_of(gaussian(path), z), atol=1e-9)
