"""scripts/score_limit.py: its closed form is the derivative of the exact denoiser by the modes' weights."""

from dataclasses import replace

import torch

from scripts.mixture_students import Points, sliced_wasserstein
from scripts.score_limit import sensitivity, wave, wrong_samples


def test_the_sensitivity_is_the_derivative_of_the_exact_denoiser():
    world, step = Points.world, 1e-5
    x0, eps = world.sample(500, torch.Generator().manual_seed(0))[0], torch.Generator().manual_seed(1)
    noise = torch.randn(x0.shape, generator=eps, dtype=x0.dtype)
    for t in (0.2, 0.5, 0.8):
        time = torch.tensor(t, dtype=torch.float64)
        x = world.path.mix(x0, noise, time)
        up, down = (replace(world, weights=world.weights * (1 + sign * step * wave(world))) for sign in (1, -1))
        change = (up(x, time).x0 - down(x, time).x0) / (2 * step)
        expected = change.square().sum(1).mean().sqrt() / 2**0.5  # of an element, as an error of x0 is measured
        torch.testing.assert_close(torch.tensor(sensitivity(world, x, t)), expected.float(), rtol=1e-5, atol=0)


def test_wrong_weights_are_a_distance_away():
    right, wrong = (sliced_wasserstein(wrong_samples(Points.world, d, 4000, 0), Points.world) for d in (0.0, 0.1))
    assert right < 0.02 and 0.1 < wrong < 0.2
