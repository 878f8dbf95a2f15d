"""What exponential solvers are exact for, and the integrals beneath them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gen.config.spec import build
from gen.diffusion.path import EDM, VP, Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.samplers.solvers.lib.exponential import Node, data_prediction, integrals
from tests.samplers.solvers.worlds import f64, log_grid, mixture


@pytest.mark.parametrize("h", [1e-4, 0.1, 2.0, 9.0])
@pytest.mark.parametrize("rate", [1.0, 2.0, -1.0])
def test_the_integrals_of_two_nodes(h, rate):
    """int_-h^0 e^(r u) du and int_-h^0 e^(r u) u du in closed form, for the polynomials 1 and lam."""
    nodes = [Node(0.3, torch.zeros(1)), Node(0.3 - 0.7 * h, torch.zeros(1))]
    weights = integrals(nodes, 0.3, 0.3 + h, rate)
    whole = -math.expm1(-rate * h) / rate
    assert sum(weights) == pytest.approx(whole, rel=1e-12)
    first = (h * math.exp(-rate * h) - whole) / rate  # of u, which is lam - end
    assert sum(w * (n.lam - 0.3 - h) for w, n in zip(weights, nodes, strict=True)) == pytest.approx(first, rel=1e-7)


class Polynomial:
    """x0 = sum_k lam^k / (k + 1), the same for every x."""

    def __init__(self, path, degree):
        self.path, self.degree = path, degree

    def x0(self, lam):
        return sum(lam**k / (k + 1) for k in range(self.degree + 1))

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = self.x0(self.path.lam(t)) * torch.ones_like(x)
        return Prediction(x0, (x - self.path.alpha(t) * x0) / self.path.sigma(t))

    def exact(self, x, t, s):
        """int e^lam lam^k = e^lam sum_j (-1)^(k - j) k! / j! lam^j, by parts."""

        def primitive(lam):
            return sum(
                (-1) ** (k - j) * math.factorial(k) / math.factorial(j) * lam**j / (k + 1)
                for k in range(self.degree + 1)
                for j in range(k + 1)
            )

        path = self.path
        keep = path.sigma(s) / path.sigma(t)
        a, b = path.lam(t), path.lam(s)
        return keep * x + path.alpha(s) * primitive(b) - path.alpha(t) * keep * primitive(a)


EXACT = [
    ("dpmpp", {"solver_order": 2, "kind": "heun"}, 1),
    ("dpmpp", {"solver_order": 3}, 2),
    ("unipc", {"solver_order": 3, "corrector": False}, 2),
    ("exp_ab", {"solver_order": 2, "start": "low"}, 1),
    ("exp_ab", {"solver_order": 4, "start": "low"}, 3),
]


def worst(solver, degree, order):
    """The largest relative error of a single step after the start, on an uneven grid."""
    f = Polynomial(EDM(), degree)
    lam = -2 + 2.5 * torch.linspace(0, 1, 13, dtype=torch.float64) ** 1.3
    grid, points = f.path.t_from_lambda(lam), [torch.ones(1, 1, dtype=torch.float64)]
    integrate(f, points[0], grid, solver, watch=lambda i, t, x: points.append(x))
    errors = []
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        exact = f.exact(points[i], t, s)
        errors.append(float((points[i + 1] - exact).abs() / exact.abs()))
    return max(errors[order:])


@pytest.mark.parametrize(("name", "fields", "degree"), EXACT)
def test_x0_polynomial_in_log_snr_costs_no_error(name, fields, degree):
    assert worst(build("samplers.solvers", name, **fields), degree, fields["solver_order"]) < 3e-15


def test_any_order_is_exact_for_its_degree():
    assert worst(build("samplers.solvers", "exp_ab", solver_order=6, start="low"), 5, 6) < 5e-14


@pytest.mark.parametrize(
    ("name", "fields", "degree"),
    [("dpmpp", {"solver_order": 2}, 1), ("dpmpp", {"solver_order": 3, "compat": "diffusers"}, 2)],
)
def test_the_midpoint_and_the_published_third_order_are_not_exact(name, fields, degree):
    assert worst(build("samplers.solvers", name, **fields), degree, fields["solver_order"]) > 1e-5


INVARIANT = [
    ("euler", {}),
    ("dpmpp", {"solver_order": 3}),
    ("dpmpp_single", {"solver_order": 3}),
    ("unipc", {"solver_order": 3}),
    ("deis", {"solver_order": 3}),
    ("exp_ab", {"solver_order": 4, "start": "low"}),
    ("adaptive", {}),
]


@pytest.mark.parametrize(("name", "fields"), INVARIANT)
def test_the_same_noise_levels_give_the_same_x0_on_every_path(name, fields):
    solver, unit, found = build("samplers.solvers", name, **fields), torch.randn(8, 2, dtype=torch.float64), []
    for path in (VP(), EDM(), Flow()):
        grid = torch.cat([log_grid(path, 12, high=20.0), f64(0.0)])
        x = path.alpha(grid[0]) * 20 * unit  # the same x / alpha
        found.append(integrate(mixture(path), x, grid, solver))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


def test_the_data_prediction_is_x0_to_the_bit_unless_a_guide_made_a_pair():
    path, t = VP(), f64(0.95)[0]
    x0, eps = torch.randn(2, 64, 3)
    x = path.mix(x0, eps, t)
    assert torch.equal(data_prediction(path, x, Prediction(x0, eps), t), x0)
    guided = Prediction(x0 + 0.5, eps)
    torch.testing.assert_close(data_prediction(path, x, guided, t), x0, rtol=0, atol=2e-3)
    noise_only = data_prediction(Flow(), eps, guided, f64(1.0)[0])
    assert torch.equal(noise_only, guided.x0)
