"""Stochastic solvers: the exact variance of what they make of Gaussian data, and their published steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import LearnedVariance
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import DDPM, EDM, VP, Flow, Prediction, Trig
from gen.diffusion.sampling import integrate
from tests.samplers.solvers.worlds import Curved, f64, log_grid, variance

STD = 0.5


def weak_order(solver, path, grid, steps=(128, 256)):
    """Slope of the relative error of the variance at the grid's end."""
    errors = []
    for n in steps:
        times = grid(n)
        exact = float(path.alpha(times[-1]) ** 2 * STD**2 + path.sigma(times[-1]) ** 2)
        errors.append(abs(variance(solver, path, STD, times) / exact - 1))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("name", "fields", "order"),
    [
        ("dpmpp_sde", {"solver_order": 1}, 1),
        ("dpmpp_sde", {"solver_order": 2}, 2),
        ("dpmpp_sde", {"solver_order": 2, "kind": "heun"}, 2),
        ("ddim", {"eta": 1.0}, 1),
        ("ancestral", {}, 1),
    ],
)
def test_the_weak_order_in_log_snr(name, fields, order):
    solver = build("samplers.solvers", name, **fields)
    assert solver.order is None
    assert weak_order(solver, EDM(), lambda n: log_grid(EDM(), n)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_weak_order_of_the_flow_s_sde(method, order):
    solver = build("samplers.solvers", "flow_sde", method=method)
    for path in (Flow(), Trig()):
        grid = [0.9 * path.t1, 0.1 * path.t1]
        assert weak_order(solver, path, lambda n, g=grid: torch.linspace(*g, n + 1, dtype=torch.float64)) == (
            pytest.approx(order, abs=0.15)
        )


def test_the_error_of_the_sde_s_variance_is_the_known_one():
    """22% at 32 and 0.8% at 1024 steps for the first order; 2.1% and 0.002% for the second."""
    for order, errors in ((1, (2.2e-1, 8.0e-3)), (2, (2.1e-2, 2.2e-5))):
        solver = build("samplers.solvers", "dpmpp_sde", solver_order=order)
        for steps, known in zip((32, 1024), errors, strict=True):
            exact = STD**2 + 0.02**2
            error = abs(variance(solver, EDM(), STD, log_grid(EDM(), steps)) / exact - 1)
            assert error == pytest.approx(known, rel=0.1)


def test_the_noise_of_a_flow_s_sde_has_the_right_sign():
    """The other sign of the score would be off by a factor of several: this is within 2%."""
    grid = torch.linspace(1.0, 0.02, 257, dtype=torch.float64)
    exact = 0.98**2 * STD**2 + 0.02**2
    assert variance(build("samplers.solvers", "flow_sde"), Flow(), STD, grid) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("path", [Flow(), Trig(), VP(), EDM(), DDPM(), DDPM("cosine")], ids=repr)
def test_a_flow_s_sde_has_the_marginals_of_every_path(path):
    grid = path.t_from_lambda(torch.linspace(-4.0, 3.0, 257, dtype=torch.float64))
    exact = float(path.alpha(grid[-1]) ** 2 * STD**2 + path.sigma(grid[-1]) ** 2)
    for method, rel in (("euler", 0.05), ("heun", 0.005)):
        solver = build("samplers.solvers", "flow_sde", method=method)
        assert variance(solver, path, STD, grid) == pytest.approx(exact, rel=rel)


def test_the_noise_of_a_flow_s_sde_knows_no_unit():
    """Neither that of t, which is 1000 times as long on DDPM as on VP, nor that of x, which EDM's sigma_max sets."""
    f, x, noise = Curved(VP()), torch.ones(2, 1, dtype=torch.float64), Noise(tuple(sample_seeds(0, 2)))
    added = {}
    for path in (VP(), DDPM(), EDM(80.0), EDM(8.0)):
        grid = f64(0.6, 0.5) * path.t1
        ends = [
            integrate(Curved(path), x, grid, build("samplers.solvers", "flow_sde", churn=c), noise=n)
            for c, n in ((1.0, noise), (1.0, Mute()))
        ]
        added[path] = (ends[0] - ends[1]) / float(path.sigma(f64(path.t1)))
    torch.testing.assert_close(added[DDPM()], added[VP()], rtol=0.01, atol=0)
    torch.testing.assert_close(added[EDM(8.0)], added[EDM(80.0)], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        added[VP()], noise.normal(0, (1,)).double() * math.sqrt(0.1 * float(f.path.sigma(f64(0.55)))), rtol=1e-3, atol=0
    )


class Mute:
    """A noise of zeros."""

    def normal(self, step, shape):
        return torch.zeros(2, *shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "off", "same"),
    [
        ("ddim", {"eta": 0.0}, "euler"),
        ("ancestral", {"eta": 0.0}, "euler"),
        ("dpmpp_sde", {"eta": 0.0}, "dpmpp"),
        ("flow_sde", {"churn": 0.0}, "euler"),
        ("flow_sde", {"churn": 0.0, "method": "heun"}, "heun"),
    ],
)
def test_without_noise_it_is_the_ode_s_solver(name, off, same):
    x, grid = torch.randn(4, 2, dtype=torch.float64), torch.linspace(1, 0, 9, dtype=torch.float64)
    ours, ode = (
        integrate(Curved(Flow()), x, grid, build("samplers.solvers", n, **k)) for n, k in ((name, off), (same, {}))
    )
    torch.testing.assert_close(ours, ode, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_published_sde_has_the_flow_s_marginals_for_every_form(form, method):
    for path in (Flow(), Trig()):
        grid = path.t_from_lambda(torch.linspace(-3.0, 3.0, 513, dtype=torch.float64))
        exact = float(path.alpha(grid[-1]) ** 2 * STD**2 + path.sigma(grid[-1]) ** 2)
        solver = build("samplers.solvers", "sit_sde", form=form, method=method)
        assert variance(solver, path, STD, grid) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("kind", ["beta", "learned"])
def test_the_variance_of_an_ancestral_step(kind):
    """Nichol & Dhariwal 2021, eq. 15, at 1 the noise of the forward step, at -1 the posterior's."""
    path, t, s, x = DDPM(), f64(400.0)[0], f64(300.0)[0], torch.randn(3, 2, dtype=torch.float64)
    beta = 1 - (path.alpha(t) / path.alpha(s)) ** 2
    small = beta * path.sigma(s) ** 2 / path.sigma(t) ** 2
    v = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    solver, clean, one = build("samplers.solvers", "ancestral", variance=kind), torch.zeros_like(x), torch.ones_like(x)
    eps = (x - path.alpha(t) * clean) / path.sigma(t)

    def step(z):
        return solver.step(lambda *_: LearnedVariance(clean, eps, v), path, x, t, s, None, lambda: z * one)[0]

    expected = beta if kind == "beta" else ((v + 1) / 2 * beta.log() + (1 - v) / 2 * small.log()).exp()
    torch.testing.assert_close(step(1.0) - step(0.0), expected.sqrt().expand_as(x))


def test_clipping_cuts_x0_and_eps_follows():
    path, t, s, x = DDPM(), f64(400.0)[0], f64(300.0)[0], 3 * torch.randn(5, 2, dtype=torch.float64)
    x0 = 4 * torch.randn(5, 2, dtype=torch.float64)
    pred = Prediction(x0, (x - path.alpha(t) * x0) / path.sigma(t))
    got = build("samplers.solvers", "ddim", clip=True).step(lambda *_: pred, path, x, t, s, None, None)[0]
    cut = x0.clamp(-1, 1)
    torch.testing.assert_close(got, path.alpha(s) * cut + path.sigma(s) * (x - path.alpha(t) * cut) / path.sigma(t))


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ddim_is_equation_16_on_vp(eta):
    path, x, noise = VP(), torch.randn(5, 2, dtype=torch.float64), Noise(tuple(sample_seeds(0, 5)))
    f, grid, by_hand = Curved(path), f64(0.9, 0.6, 0.3, 0.1), x
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        bar, bar_s, pred = path.alpha(t) ** 2, path.alpha(s) ** 2, f(by_hand, t)
        up = eta * ((1 - bar_s) / (1 - bar)).sqrt() * (1 - bar / bar_s).sqrt()
        z = noise.normal(i, (2,)).double()
        by_hand = bar_s.sqrt() * pred.x0 + (1 - bar_s - up**2).sqrt() * pred.eps + up * z
    ours = integrate(f, x, grid, build("samplers.solvers", "ddim", eta=eta), noise=noise)
    torch.testing.assert_close(ours, by_hand, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ancestral_is_euler_to_sigma_down_and_noise_up_on_edm(eta):
    path, x, noise = EDM(), 10 * torch.randn(5, 2, dtype=torch.float64), Noise(tuple(sample_seeds(0, 5)))
    f, grid, by_hand = Curved(path), f64(10, 4, 1, 0.3), x
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        up = min(s, eta * (s**2 * (t**2 - s**2) / t**2).sqrt())
        down = (s**2 - up**2).sqrt()
        d = (by_hand - f(by_hand, t).x0) / t
        by_hand = by_hand + (down - t) * d + up * noise.normal(i, (2,)).double()
    ours = integrate(f, x, grid, build("samplers.solvers", "ancestral", eta=eta), noise=noise)
    torch.testing.assert_close(ours, by_hand, rtol=1e-11, atol=1e-11)


def test_heun_with_churn_is_algorithm_2_of_edm():
    path, x, noise = EDM(), 10 * torch.randn(5, 2, dtype=torch.float64), Noise(tuple(sample_seeds(0, 5)))
    f, grid, x1 = Curved(path), f64(10, 4, 1, 0.3, 0), x
    solver = build("samplers.solvers", "heun", churn=0.3, s_min=0.5, s_max=5.0, s_noise=1.003)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        hat = t * (1.3 if 0.5 <= t <= 5 else 1.0)
        x1 = x1 + (hat**2 - t**2).sqrt() * 1.003 * noise.normal(i, (2,)).double()
        d = (x1 - f(x1, hat).x0) / hat
        end = x1 + (s - hat) * d
        x1 = end if s == 0 else x1 + (s - hat) * (d + (end - f(end, s).x0) / s) / 2
    torch.testing.assert_close(integrate(f, x, grid, solver, noise=noise), x1, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", [Flow(), VP(), DDPM(), Trig()], ids=repr)
def test_churn_keeps_the_variance_of_x(path):
    """Data N(0, 1) stays N(0, 1): what is stirred in belongs to the level reached, on every path."""
    solver = build("samplers.solvers", "heun", churn=0.2)
    t, x = f64(0.5 * path.t1)[0], torch.ones(1, 1, dtype=torch.float64)
    moved, hat = solver.add_churn(path, x, t, lambda: torch.zeros_like(x))
    stirred, _ = solver.add_churn(path, 0 * x, t, lambda: torch.ones_like(x))
    assert float(path.sigma(hat) / path.alpha(hat)) == pytest.approx(
        1.2 * float(path.sigma(t) / path.alpha(t)), rel=1e-9
    )
    spread = float(path.alpha(t) ** 2 + path.sigma(t) ** 2) * float(moved) ** 2 + float(stirred) ** 2
    assert spread == pytest.approx(float(path.alpha(hat) ** 2 + path.sigma(hat) ** 2), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("heun", {"churn": 40.0}),
        ("heun", {"s_min": 2.0, "s_max": 1.0}),
        ("ddim", {"eta": 1.5}),
        ("flow_sde", {"churn": -1.0}),
    ],
)
def test_wrong_numbers_are_refused(name, fields):
    with pytest.raises(UserError):
        build("samplers.solvers", name, **fields)
