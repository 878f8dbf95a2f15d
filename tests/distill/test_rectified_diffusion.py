"""Rectified Diffusion, phased or not: the exact student has no loss on any path, and one of its steps is the ODE."""

import pytest
import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.distillers.distances.huber import Huber
from gen.distillers.distances.square import Square
from gen.distillers.lib.trajectory import curvature
from gen.distillers.phased import Phased
from gen.distillers.rectified_diffusion import RectifiedDiffusion
from gen.samplers.solvers.euler import Euler
from gen.training.objectives import Batch
from tests.distill.line import world
from tests.distill.tables import (
    Curve,
    Knots,
    Straight,
    end_of,
    gaussian,
    gaussian_pairs,
    mixture_pairs,
    off,
    solve,
    spread,
)

FORMS = [(Flow(), Velocity()), (Trig(), V()), (VP(), Eps()), (EDM(8.0), EDMPrecond()), (Flow(), X0())]


@pytest.mark.parametrize(("path", "param"), FORMS, ids=lambda v: repr(v))
@pytest.mark.parametrize("space", ["x0", "output"])
def test_the_exact_student_has_no_loss_in_any_form(path, param, space):
    method, f = RectifiedDiffusion(space=space, distance=Square()), Straight(path, param).denoiser()
    batch = gaussian_pairs(40, path)
    assert float(next(method({"net": f}, batch))[1]) < 1e-12
    assert float(method.validate({"net": f}, batch)) < 1e-12


@pytest.mark.parametrize("path", [Trig(), Flow()], ids=repr)
def test_the_student_of_a_mixture_is_its_quantile_map_at_every_number_of_steps(path):
    mixture, knots = world(path), 8
    f = Denoiser(Curve(knots, path.t1), path, V())
    method = RectifiedDiffusion(times=Knots(knots), distance=Square(), space="output")
    solve(method, {"net": f}, mixture_pairs(mixture, 4000), 80)
    grid, z = torch.linspace(path.t1, 0, knots + 1, dtype=torch.float64), spread()
    for stride in (8, 2, 1):
        assert off(integrate(f, path.start(z, grid[0]), grid[::stride], Euler()), end_of(mixture, z)) < 1e-2
    assert curvature(f, path.start(z, grid[0]), grid) < 0.01 * curvature(mixture, path.start(z, grid[0]), grid)


def test_the_published_distance_is_elementwise():
    a, b = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    away = (((a - b) ** 2 + 1e-6).sqrt() - 1e-3).flatten(1).mean(1)
    assert RectifiedDiffusion().distance == Huber(0.001)
    assert torch.allclose(Huber()(a, b), away)


def points(n, path):
    noise = training_noise(0, 0, range(n))
    return Batch(gaussian(path).sample(noise.normal("data", (3,)).double()), {}, noise)


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(8.0)], ids=repr)
def test_phases_ask_for_what_a_first_order_teacher_does(path):
    """A teacher whose eps stays is its own student; a curved one is not, less so in more phases."""
    straight, method = Straight(path).denoiser(), Phased(distance=Square())
    assert float(next(method({"net": straight, "teacher": straight}, points(60, path)))[1]) < 1e-18
    bent = gaussian(path)
    few, many = (
        float(
            Phased(phases=n, substeps=4, distance=Square())
            .losses({"net": bent, "teacher": bent}, points(60, path))
            .mean()
        )
        for n in (2, 16)
    )
    assert few > 10 * many > 0


def test_the_implied_noise_of_a_phase_is_the_published_one():
    """eps* = (x_e / alpha_e - x_s / alpha_s) / (n_e - n_s), n = sigma / alpha, and x_t lies on that line."""
    from gen.distillers.lib.trajectory import euler_chord

    path, f = VP(), gaussian(VP())
    high, mid, low = (torch.full((7,), t, dtype=torch.float64) for t in (0.8, 0.7, 0.6))
    x_s = path.mix(f.sample(torch.randn(7, 3).double()), torch.randn(7, 3).double(), high)
    way = euler_chord(f, x_s, [high, mid, low], {})
    y, n = (lambda x, t: x / path.alpha(t)[:, None]), (lambda t: (path.sigma(t) / path.alpha(t))[:, None])
    x_e = path.mix(*way, low)
    eps = (y(x_e, low) - y(x_s, high)) / (n(low) - n(high))
    assert torch.allclose(way.eps, eps, atol=1e-12)
    assert torch.allclose(path.mix(*way, mid), path.alpha(mid)[:, None] * (y(x_s, high) + (n(mid) - n(high)) * eps))
