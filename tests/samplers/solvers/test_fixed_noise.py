"""The sampler that noises again with the noise it began with."""

import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.path import EDM, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.fixed_noise import FixedNoise

MEAN, STD = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.6, 0.3]).double()
TIMES = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_it_is_the_published_update(method):
    """On flow, with velocities: x0 = x - t v, v the mean of both ends' for heun, then x = (1 - s) x0 + s z."""
    f, z = Gaussian(Flow(), MEAN, STD), torch.randn(6, 2, dtype=torch.float64)

    def v(x, t):
        return f.path.velocity(f(x, t), t)

    x = z
    for t, s in itertools.pairwise(TIMES):
        slope = v(x, t)
        if method == "heun" and s > 0:
            slope = (slope + v((1 - s) * (x - t * slope) + s * z, s)) / 2
        x = (1 - s) * (x - t * slope) + s * z
    counted = CountingDenoiser(f)
    assert torch.allclose(integrate(counted, z, TIMES, FixedNoise(method)), x, atol=1e-12)
    assert counted.calls == FixedNoise(method).nfe(3) == (5 if method == "heun" else 3)


@pytest.mark.parametrize("path", [Trig(), EDM(8.0)], ids=repr)
def test_it_adds_the_noise_of_the_start_on_every_path(path):
    """After one step x is alpha x0 + sigma z, z the start's; a guess of the noise, as Euler's, is another."""
    f, z = Gaussian(path, MEAN, STD), torch.randn(6, 2, dtype=torch.float64)
    times, seen = TIMES * path.t1, []
    start = path.start(z, times[0])
    integrate(f, start, times, FixedNoise(), watch=lambda i, t, x: seen.append(x))
    assert torch.allclose(seen[0], path.mix(f(start, times[0]).x0, z, times[1]), atol=1e-12)
    assert torch.allclose(seen[1], path.mix(f(seen[0], times[1]).x0, z, times[2]), atol=1e-12)
    assert not torch.allclose(seen[-1], integrate(f, start, times, Euler()), atol=1e-3)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match=r"method: got 'rk4'\. Allowed: euler, heun"):
        FixedNoise("rk4")
