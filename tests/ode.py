"""Measures of the probability-flow ODE and of its solvers, against which tests compare."""

import itertools
import math

import torch

from gen.config.spec import build
from gen.diffusion.sampling import integrate


def measured_order(solver, f, x, start, end, steps=(128, 256, 512), truth=None):
    """Return the slope of log error against log step size; the truth is the fourth-order rule on a far finer grid.

    x [B, D] float64 at time `start`; grids are uniform from start to end, both inside (0, t1). truth: where the ODE
    leads, if that is known.
    """
    from_solver = {n: integrate(f, x, torch.linspace(start, end, n + 1, dtype=torch.float64), solver) for n in steps}
    truth = runge_kutta(f, x, start, end, 4 * max(steps)) if truth is None else truth
    logs = torch.tensor([[math.log(n), float((from_solver[n] - truth).norm().log())] for n in steps])
    centred = logs - logs.mean(0)
    return -float((centred[:, 0] * centred[:, 1]).sum() / (centred[:, 0] ** 2).sum())


def runge_kutta(f, x, start, end, steps):
    """Integrate the probability-flow ODE by the classical fourth-order rule."""
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)

    def v(x, t):
        return f.path.velocity(f(x, t), t)

    for t, s in itertools.pairwise(times):
        h = s - t
        k1 = v(x, t)
        k2 = v(x + h / 2 * k1, t + h / 2)
        k3 = v(x + h / 2 * k2, t + h / 2)
        k4 = v(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def euler_std(std, steps):
    """Return the standard deviation after `steps` Euler steps of the exact flow of data N(m, std^2), from t = 1 to 0.

    prod_k |1 - S'(t_k) / (N S(t_k))| with S^2 = (1 - t)^2 std^2 + t^2; one step gives 0, the bare mean.
    """
    product = 1.0
    for k in range(steps):
        t = 1 - k / steps
        square = (1 - t) ** 2 * std**2 + t**2
        product *= abs(1 - (t - (1 - t) * std**2) / square / steps)
    return product


def straightness(f, x, steps=128):
    """Return the mean square of dx/dt - (x(t1) - x(0)) / t1 along the ODE from x [B, D] at t1 (rf++)."""
    times = torch.linspace(f.path.t1, 0, steps + 1, dtype=torch.float64)
    points = [x]
    integrate(f, x, times, build("samplers.solvers", "euler"), watch=lambda i, t, x: points.append(x))
    trajectory = torch.stack(points)
    slopes = -trajectory.diff(dim=0) * steps / f.path.t1
    base = (trajectory[0] - trajectory[-1]) / f.path.t1
    return float(((slopes - base) ** 2).mean())
