"""RED-PSM: its update of the film against the direct solve, and a film whose frames show a few rows each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.diffusion.noise import Noise
from gen.diffusion.path import EDM, Prediction
from gen.diffusion.worlds import Gaussian
from gen.samplers.restore.red_psm import RedPSM, cubic_hermite, denoised_frames


@dataclass
class Linear:
    """A denoiser whose x0 is a symmetric matrix times x."""

    matrix: torch.Tensor
    path = EDM()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0 = x @ self.matrix
        return Prediction(x0, (x - x0) / self.path.sigma(t))


def test_the_film_s_update_has_the_regulariser_s_fixed_point():
    """(weight (I - W) + beta I)^-1 beta (product + gamma), and each round comes closer by its share of W."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    smoother = basis @ torch.diag(torch.linspace(0.1, 0.9, 6, dtype=torch.float64)) @ basis.mT
    target = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    weight, beta = 0.3, 0.2
    eye = torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.solve(weight * (eye - smoother) + beta * eye, beta * target.mT).mT
    film, errors = torch.zeros_like(target), []
    for _ in range(120):
        film = denoised_frames(Linear(smoother), film, target, weight, beta, 0.1, None)
        errors.append(float((film - exact).norm()))
    torch.testing.assert_close(film, exact, rtol=0, atol=1e-12)
    assert abs(errors[30] / errors[29] - weight / (weight + beta) * 0.9) < 1e-3


def test_the_spline_passes_through_its_nodes_and_is_exact_on_lines():
    basis = cubic_hermite(5, 17)
    assert torch.equal(basis[::4], torch.eye(5, dtype=torch.float64))
    nodes = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(basis @ nodes, torch.linspace(0, 4, 17, dtype=torch.float64))


@dataclass
class Rows:
    """Frame p shows two of its pixels, others in every frame."""

    shown: torch.Tensor  # int64 [P, 2]

    def A(self, x):
        return x.gather(1, self.shown)


def test_a_film_of_low_rank_is_seen_through_two_pixels_a_frame():
    frames, pixels = 24, 6
    time = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]
    space = torch.linspace(-1, 1, pixels, dtype=torch.float64)
    film = (1 - time) * space + time * space**2
    operator = Rows(torch.arange(frames)[:, None] * 2 % pixels + torch.tensor([[0, 1]]))
    prior = Gaussian(EDM(), torch.zeros(pixels).double(), torch.ones(pixels).double())
    method = RedPSM(rank=2, nodes=4, rounds=40, weight=1e-4, beta=1e-3, steps=20, lr=2e-2)
    found = method.restore(prior, operator.A(film), operator, (frames, pixels), Noise(tuple(range(frames))))
    zero_filled = torch.zeros_like(film).scatter(1, operator.shown, operator.A(film))
    assert float((found - film).square().mean()) < 0.02 * float((zero_filled - film).square().mean())
