"""Restoration's paths under their samplers: ResShift's chain and I2SB's bridge, by their published formulas."""

from __future__ import annotations

import torch

from gen.diffusion.path import Bridge, Prediction, Shift
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.ancestral import Ancestral
from gen.samplers.solvers.ddim import DDIM
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.renoise import Renoise
from tests.over import over
from tests.samplers.solvers.worlds import Impulses, f64

SHIFT = DDIM(eta=1.0, kernel="shift")
JOURNAL = Shift(steps=4, low=0.2)


ROOTS = {  # sqrt(eta)
    4: "0.1 0.520096 0.761382 0.99",
    15: "0.02 0.117165 0.176305 0.233629 0.291574 0.351009 0.412356 0.475858 0.541672 0.609910 0.680658 0.753985 "
    "0.829951 0.908606 0.99",
}
POSTERIORS = {  # variances
    4: "0 0.038521 0.577119 0.947297",
    15: "0 0.001553 0.030660 0.053529 0.078156 0.105413 0.135730 0.169415 0.206732 0.247927 0.293244 0.342927 0.397223 "
    "0.456386 0.520675",
}
RATIOS = {  # sigma / alpha of the residual
    4: "0.20202 1.42590 3.62306 99.4975",
    15: "0.04002 0.23759 0.36392 0.49423 0.63733 0.80067 0.99367 1.2303 1.5332 1.9424 2.5364 3.4947 5.3342 10.4177 "
    "99.4975",
}


@over(path=[JOURNAL, Shift()])
def test_the_schedule_and_the_posterior_are_the_published_ones(path):
    """Of the journal and of the conference."""
    roots, variances, ratios = ([*map(float, of[path.steps].split())] for of in (ROOTS, POSTERIORS, RATIOS))
    t = torch.arange(1, path.steps + 1, dtype=torch.float64)
    torch.testing.assert_close(path.root_eta(t), f64(*roots), rtol=0, atol=6e-7)
    torch.testing.assert_close(path.sigma(t) / path.alpha(t), f64(*ratios), rtol=3e-5, atol=6e-6)
    x0, eps = f64([0.7, 0.4])[..., None], f64([-0.3, 1.1])[..., None]
    pred = Prediction(x0, eps)
    eta = torch.cat([f64(0.0), path.root_eta(t) ** 2])
    for k in range(2, path.steps + 1):  # to entry k - 1 from entry k, of residuals: y = 0
        mean, up = SHIFT.posterior(path, pred, t[k - 1], t[k - 2])
        x, share = path.mix(x0, eps, t[k - 1]), eta[k - 1] / eta[k]
        torch.testing.assert_close(mean, share * x + (1 - share) * x0, rtol=0, atol=1e-13)
        assert abs(up**2 - variances[k - 1]) < 6e-7


def test_the_chain_has_the_path_s_marginals():
    """x_k = x_(k-1) + a_k (y - x0) + N(0, kappa^2 a_k) from x0 = 0.7 towards y = 1.5."""
    path = Shift()
    mean, variance, eta = f64(0.7), f64(0.0), f64(0.0)
    for k in range(1, 16):
        next_eta = path.root_eta(f64(float(k))) ** 2
        mean, variance = mean + (next_eta - eta) * 0.8, variance + 4 * (next_eta - eta)
        eta = next_eta
        torch.testing.assert_close(mean, 1.5 + path.alpha(f64(float(k))) * (0.7 - 1.5), rtol=1e-14, atol=0)
        torch.testing.assert_close(variance, path.sigma(f64(float(k))) ** 2, rtol=1e-13, atol=0)
    assert abs(float(mean) - 1.48408) < 1e-9
    assert abs(float(variance) - 3.9204) < 1e-9


def moments(solver, path):
    """Exact mean and variance of x0 = y + the sampled residual, y = 1, x0 ~ N(.3, .5), y = x0 + N(0, .2)."""
    world = Gaussian(path, f64(-0.2), f64(1 / 7) ** 0.5)  # x0 - y given y is N(.8 - 1, 1/7)
    grid = torch.arange(path.steps, -1, -1, dtype=torch.float64)
    rows = path.steps + 2  # one unit of noise at each step, the start, nothing
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[-2] = path.sigma(grid[0])
    out = integrate(world, x, grid, solver, noise=Impulses(rows))[:, 0]
    return float(out[-1]) + 1, float(((out[:-1] - out[-1]) ** 2).sum())


LAWS = {  # steps: mean and variance of the posterior kernel, deterministic, ancestral, renoise; the truth .8, .142857
    4: [(0.800110, 0.034272), (0.800449, 0.049887), (0.800003, 0.033121), (0.800000, 0.029995)],
    15: [(0.800130, 0.083683), (0.800642, 0.101907), (0.800003, 0.082849), (0.800000, 0.052881)],
    100: [(0.800132, 0.124317), (0.800734, 0.133160), (0.800003, 0.124109), (0.800000, 0.064704)],
}


@over(steps=[*LAWS])
def test_what_a_perfect_network_makes_of_gaussian_pairs(steps):
    """With 15 steps 59 % of the true variance and with 4 steps 24 %, whatever the network."""
    path = JOURNAL if steps == 4 else Shift(steps)
    for solver, law in zip((SHIFT, Euler(), Ancestral(), Renoise()), LAWS[steps], strict=True):
        got = moments(solver, path)
        assert all(abs(a - b) < 6e-7 for a, b in zip(got, law, strict=True)), (solver, got, law)
    assert round(100 * LAWS[steps][0][1] * 7) == {4: 24, 15: 59, 100: 87}[steps]


def test_an_ancestral_step_on_a_bridge_is_the_brownian_bridge_s():
    path = Bridge()
    s, t = f64(0.3), f64(0.62)
    x0, eps = f64([0.7, -1.0])[..., None], f64([0.2, 0.4])[..., None]
    until, between = path.total * path.share(s), path.total * (path.share(t) - path.share(s))
    x = path.mix(x0, eps, t)
    mean, up = DDIM(eta=1.0).posterior(path, Prediction(x0, eps), t, s)
    torch.testing.assert_close(mean, (between * x0 + until * x) / (until + between), rtol=0, atol=1e-14)
    assert abs(up**2 / float(until * between / (until + between)) - 1) < 1e-12
    ends = f64(1 / 999, 500 / 999, 1.0)
    torch.testing.assert_close(path.sigma(ends), f64(0.01, 0.187796, 0.01), rtol=1e-3, atol=0)
