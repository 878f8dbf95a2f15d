"""Score distillation without a student: closed forms in the Gaussian world, in float64; curves against their areas."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import VP, Flow
from gen.diffusion.worlds import Gaussian
from gen.distillers.lib import curves
from gen.distillers.lib.particles import LearnedCritic, distil_particles, score_distillation_gradient
from gen.models.mlp import MLP
from tests.over import over


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


MEAN, STD = f64(0.7, -0.4), f64(0.5, 0.8)


@over(path=[Flow(), VP()])
def test_the_mean_gradients_are_those_of_the_closed_forms(path):
    """SDS: w sigma alpha (x - mu) / (alpha^2 s^2 + sigma^2); VSD subtracts the same of the particles' own law."""
    teacher, particles = Gaussian(path, MEAN, STD), Gaussian(path, f64(0.1, 0.3), f64(0.9, 0.2))
    x, eps, t = f64([0.2, 1.0]).expand(2, 2), f64([1.0, 1.0], [-1.0, -1.0]), f64(0.3, 0.3) * path.t1
    alpha, sigma = path.alpha(t[0]), path.sigma(t[0])
    x_t = path.mix(x, eps, t)  # opposite noise: the mean is that over all noise, since all is linear

    def closed(world):
        return sigma**3 * alpha * (x[0] - world.mean) / ((alpha * world.std) ** 2 + sigma**2)

    real, fake = teacher(x_t, t).x0, particles(x_t, t).x0
    sds = score_distillation_gradient(path, x, t, x, real)
    torch.testing.assert_close(sds, sigma**2 * (teacher(x_t, t).eps - eps), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sds.mean(0), closed(teacher), rtol=1e-12, atol=1e-12)
    vsd = score_distillation_gradient(path, x, t, fake, real).mean(0)
    torch.testing.assert_close(vsd, closed(teacher) - closed(particles), rtol=1e-12, atol=1e-12)
    assert not score_distillation_gradient(path, x, t, real, real).any()  # of particles that have the teacher's law


class Moments:
    """The exact critic of particles whose law is Gaussian."""

    def fit(self, x, cond, noise):
        self.world = Gaussian(Flow(), x.mean(0), x.std(0, correction=0))

    def __call__(self, x, t, cond):
        return self.world(x, t)


@pytest.mark.parametrize("method", ["sds", "vsd"])
def test_sds_ends_in_the_mode_and_vsd_in_the_law(method):
    """Particles are 2 theta + 1, so the gradient goes through a rendering, too."""
    theta = (0.3 * Noise(tuple(range(24))).normal("start", (2,)).double()).requires_grad_()
    optim, critic, steps = torch.optim.SGD([theta], 1.0), Moments() if method == "vsd" else None, 200
    if critic is not None:
        critic.fit(2 * theta.detach() + 1, {}, None)

    def slower(step, x):
        optim.param_groups[0]["lr"] = 1 - (step + 1) / steps

    distil_particles(lambda: 2 * theta + 1, optim, Gaussian(Flow(), MEAN, STD), {}, critic=critic, steps=steps,
                     watch=slower)  # fmt: skip
    x = 2 * theta.detach() + 1
    assert (x.mean(0) - MEAN).abs().max() < 0.05
    if method == "sds":
        assert (x.std(0) / STD).max() < 0.2
    else:
        torch.testing.assert_close(x.std(0, correction=0), STD, rtol=0.03, atol=0)


def test_a_learned_critic_learns_the_renderings_and_leaves_the_teacher():
    torch.manual_seed(0)
    teacher = Denoiser(MLP.preset("points", width=32).build().eval().requires_grad_(False), Flow(), Velocity())
    before = {name: weight.clone() for name, weight in teacher.net.state_dict().items()}
    critic, x, t = LearnedCritic(teacher, 1e-2), torch.full((16, 2, 1, 1), 0.5), torch.full((16,), 0.9)

    def error():
        x_t = Flow().mix(x, Noise(tuple(range(16))).normal("eps", (2, 1, 1)), t)
        return float((critic(x_t, t, {}).x0 - x).square().mean())

    first = error()
    for step in range(60):
        critic.fit(x, {}, Noise(tuple(range(100 * step, 100 * step + 16))))
    assert error() < 0.1 * first
    assert all(torch.equal(before[name], weight) for name, weight in teacher.net.state_dict().items())


# Curves

QUARTER = 0.5522847498  # of a circle, by a cubic


def circle(radius):
    """Control points of a closed path of four cubics, [13, 2], in the middle of the unit square."""
    k = QUARTER
    points = [
        (1, 0),
        (1, k),
        (k, 1),
        (0, 1),
        (-k, 1),
        (-1, k),
        (-1, 0),
        (-1, -k),
        (-k, -1),
        (0, -1),
        (k, -1),
        (1, -k),
        (1, 0),
    ]
    return 0.5 + radius * f64(*points)


def area(coverage):
    return coverage.mean((-1, -2))


def test_a_disc_s_area_and_its_derivative_are_those_of_the_closed_form():
    """pi r^2 + pi^3 w^2 / 3, and 2 pi r; the cubics are off by 3e-4 of the radius."""
    radius, soft = f64(0.3).requires_grad_(), 0.02
    covered = area(curves.fill(curves.bezier(circle(radius), 32), 96, 96, soft))
    (slope,) = torch.autograd.grad(covered, radius)
    assert float(covered.detach()) == pytest.approx(math.pi * 0.09 + math.pi**3 * soft**2 / 3, rel=1e-3)
    assert float(slope) == pytest.approx(2 * math.pi * 0.3, rel=1e-3)


def test_a_stroke_s_area_is_that_of_a_capsule_and_gradients_reach_its_ends():
    line, thick = f64([0.3, 0.5], [0.7, 0.5]).requires_grad_(), f64(0.2).requires_grad_()
    covered = area(curves.stroke(line, thick[0], 96, 96, 0.01))
    capsule = 0.4 * 0.2 + math.pi * 0.1**2
    assert float(covered.detach()) == pytest.approx(capsule + math.pi**3 * 0.01**2 / 3, rel=1e-3)
    ends, slope = torch.autograd.grad(covered, (line, thick))
    assert float(slope) == pytest.approx(0.4 + math.pi * 0.1, rel=2e-3)
    torch.testing.assert_close(ends, f64([-0.2, 0.0], [0.2, 0.0]), rtol=2e-3, atol=1e-9)


def test_inside_is_where_a_line_goes_around_and_a_hole_is_not_filled_twice():
    line = curves.bezier(circle(0.3), 8)
    turns = curves.winding(torch.stack([line, line.flip(0)]), 9, 9)
    assert turns[0, 4, 4] == 1 and turns[1, 4, 4] == -1 and turns[0, 0, 0] == 0
    twice = torch.cat([line, line[1:]])
    torch.testing.assert_close(curves.fill(twice, 9, 9, 0.05), curves.fill(line, 9, 9, 0.05))
    with pytest.raises(UserError, match=r"must be \[..., 3 K \+ 1, 2\]"):
        curves.bezier(line[:3])


def test_a_bezier_path_passes_through_its_ends_and_has_the_middle_of_de_casteljau():
    points = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = curves.bezier(points, 4)
    assert torch.equal(line[[0, 8]], points[[0, 6]]) and line.shape == (9, 2)
    torch.testing.assert_close(line[4], points[3])
    torch.testing.assert_close(line[2], (points[0] + 3 * points[1] + 3 * points[2] + points[3]) / 8)


def test_the_first_shape_is_painted_first_and_an_svg_holds_the_same_drawing():
    points = torch.stack([circle(0.4), circle(0.2)])
    colours, background = f64([1.0], [-0.5]), f64(-1.0)
    cover = curves.fill(curves.bezier(points), 16, 16, 0.002)
    picture = curves.paint(cover, colours, background)
    assert picture.shape == (1, 16, 16)
    for at, value in {(8, 8): -0.5, (8, 2): 1.0, (0, 0): -1.0}.items():
        assert float(picture[0, at[0], at[1]]) == pytest.approx(value, abs=1e-2)
    for thickness in (None, f64(0.1, 0.2)):
        root = ElementTree.fromstring(curves.to_svg(points, colours, background, thickness))
        ground, *paths = list(root)
        assert ground.get("fill") == "#000000" and root.get("viewBox") == "0 0 1 1"
        read = [f64(*map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", path.get("d")))).reshape(-1, 2) for path in paths]
        torch.testing.assert_close(torch.stack(read), points, rtol=1e-5, atol=1e-6)
        how = [(path.get("fill"), path.get("stroke"), path.get("stroke-width")) for path in paths]
        filled, drawn = (
            [("#ffffff", None, None), ("#404040", None, None)],
            [("none", "#ffffff", "0.1"), ("none", "#404040", "0.2")],
        )
        assert how == (filled if thickness is None else drawn)
