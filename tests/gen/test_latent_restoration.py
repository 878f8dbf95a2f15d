"""Restoration with an autoencoder in the loop, y = A decode(z): every plug-in runs or refuses it in one line."""

from dataclasses import dataclass

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import Flow, Prediction
from gen.operators.matrix import Matrix
from gen.pipeline import Pipeline
from gen.samples import Samples

STEPS = {
    "volume": {"steps": 2}, "red_psm": {"rounds": 1, "nodes": 2, "steps": 2}, "repaint": {"steps": 4, "repeats": 2},
    "d_flow": {"steps": 2, "iterations": 3}, "pnp_flow": {"steps": 4, "draws": 2},
}  # fmt: skip
BY_DERIVATIVE = {"dps", "flow_dps", "pnp_flow", "red_diff", "d_flow", "red_psm"}  # all that they ask of A
METHODS = names("samplers.restore")


def spec(name):
    return {"name": name, **STEPS.get(name, {"steps": 4})}


class Spread:
    """Pictures [B, 1, 4, 4] of latents [B, 1, 2, 2] by an orthogonal map."""

    matrix = torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))[0]

    def decode(self, z):
        return (z.flatten(1) @ self.matrix.mT).reshape(-1, 1, 4, 4)


@dataclass(frozen=True)
class Latents:
    """Latents N(0.2, 0.16) of any shape."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        a, b = float(t), 0.16 * float(1 - t) ** 2
        x0 = 0.2 + 0.16 * float(1 - t) / (b + a**2) * (x - 0.2 * float(1 - t))
        return Prediction(x0, (x - float(1 - t) * x0) / a)

    def null(self, cond):
        return {}


def prior():
    return Pipeline(Latents(), (1, 2, 2), info={"latent": {"scale": 0.5, "shift": 0.25}})


Y = torch.linspace(-1, 1, 2 * 3).reshape(2, 3)
A = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))[0].mT


def matrix(rows):
    return Matrix(tuple(map(tuple, rows.tolist())))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_with_an_autoencoder_or_refuses_it_and_runs_on_latents(name):
    model = prior()
    if name in BY_DERIVATIVE:
        made = model.restore(Y, matrix(A), spec(name), autoencoder=Spread(), seed=3)
        assert made.x.shape == (2, 1, 4, 4) and made.x.isfinite().all() and not made.no_pictures
    else:
        with pytest.raises(UserError, match=r"has no \w|has none: take|is not linear") as error:
            model.restore(Y, matrix(A), spec(name), autoencoder=Spread())
        assert "\n" not in str(error.value)
    made = model.restore(Y, matrix(A[:, :4]), spec(name))
    assert made.x.shape == (2, 1, 2, 2) and made.x.isfinite().all() and made.no_pictures


@pytest.mark.parametrize("name", sorted(BY_DERIVATIVE - {"red_diff"}))  # which begins elsewhere
def test_a_linear_decoder_is_a_part_of_the_operator(name):
    """Scaled and shifted latents measured through it are latents measured by A times its matrix."""
    model, coder = prior(), Spread()
    through = A @ coder.matrix / 0.5
    known = Y - 0.25 * (A @ coder.matrix).sum(1)
    size = torch.linalg.matrix_norm(through, 2)  # by which descents go on a linear operator
    rates = [{"rate": 0.5 * float(r)} if name in ("flow_dps", "pnp_flow") else {} for r in (1, size**2)]
    made = model.restore(Y, matrix(A), spec(name) | rates[0], autoencoder=coder, seed=3)
    method = build("samplers.restore", spec(name) | rates[1])
    seeds = tuple(sample_seeds(3, 2))
    z = method.restore(model.denoiser, known, matrix(through).on((1, 2, 2)), (2, 1, 2, 2), Noise(seeds))
    expected = model.decoded(Samples(z, {}, 0.0, 0.0), coder)
    torch.testing.assert_close(made.x, expected.x, rtol=1e-4, atol=1e-4)
