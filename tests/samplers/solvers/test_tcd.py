"""TCD: between DDIM and renoising."""

from __future__ import annotations

import pytest
import torch

from gen.diffusion.noise import Noise
from gen.diffusion.path import DDPM, EDM, Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.ddim import DDIM
from gen.samplers.solvers.renoise import Renoise
from gen.samplers.solvers.tcd import TCD

X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("path", [Flow(), DDPM(), EDM()], ids=["flow", "ddpm", "edm"])
def test_between_ddim_and_renoising(path):
    world = Gaussian(path, torch.tensor([3.0, 0.0, 1.0]).double(), torch.full((3,), 0.6).double())
    times = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64) * path.t1
    for solver, same in ((TCD(0.0), DDIM()), (TCD(1.0), Renoise())):
        ends = [integrate(world, X, times, one, noise=Noise(tuple(range(len(X))))) for one in (solver, same)]
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_noise_makes_up_for_the_step_below(whole):
    """x_s = alpha_s x0 + k eps + u z with k^2 + u^2 = sigma_s^2, and k = alpha_s sigma / alpha at s'."""
    path, s = DDPM(), torch.tensor(403.0, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    parts = []
    for x0, eps, z in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        pred = Prediction(one * x0, one * eps)
        x, _ = TCD(0.3, whole).step(lambda *_, p=pred: p, path, one, 2 * s, s, None, lambda z=z: one * z)
        parts.append(float(x))
    low = torch.tensor(282.0 if whole else 282.1, dtype=torch.float64)  # .7 * 402 = 281.4: entry 281
    a, k, u = parts
    assert a == pytest.approx(float(path.alpha(s)))
    assert k == pytest.approx(float(path.alpha(s) * path.sigma(low) / path.alpha(low)))
    assert k**2 + u**2 == pytest.approx(float(path.sigma(s)) ** 2)
