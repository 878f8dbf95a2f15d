"""Denoising: on a Gaussian the loss of the exact denoiser is known, on every path and in every parameterisation."""

import itertools

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.times import Integers, LogitNormal, Point
from gen.diffusion.worlds import Gaussian
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising, drop_condition
from tests.gen.tiny import tiny

STD = 0.6
PATHS = [Flow(), VP(), DDPM(), Trig(), EDM(3.0)]


class Exact(nn.Module):
    """A network that says what the exact denoiser would have it say, at one time."""

    def __init__(self, world, param, t, error=0.0):
        super().__init__()
        self.world, self.parameterisation, self.t, self.error = world, param, t, error

    def forward(self, x, t, cond, *, s=None, tap=None):
        path = self.world.path
        x = x / self.parameterisation.scale(path, self.t)
        return self.parameterisation.target(path, *self.world(x, self.t), self.t) + self.error

    def null(self, cond):
        return cond


def batch(n=4096, dim=8):
    noise = training_noise(0, 0, range(n))
    x = STD * noise.normal("data", (dim,)).double()
    return Batch(x, {}, noise)


@pytest.mark.parametrize("param", names("diffusion.parameterisation"))
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_the_loss_of_the_exact_denoiser_is_what_cannot_be_known(path, param):
    param, where = build("diffusion.parameterisation", param), 0.4
    t = torch.tensor(where * path.t1, dtype=torch.float64)
    world = Gaussian(path, torch.zeros(8).double(), torch.full((8,), STD).double())
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of x0 given x_t
    expected = float(variance * (param.det(path, t) / sigma) ** 2)
    data, objective = batch(), Denoising(times=Point(where))
    found = [
        float(next(objective({"net": Denoiser(Exact(world, param, t, error), path, param)}, data))[1])
        for error in (0.0, 0.1, -0.1)
    ]
    assert found[0] == pytest.approx(expected, rel=0.03)
    assert found[0] < min(found[1:])
    assert sum(found[1:]) / 2 - found[0] == pytest.approx(0.01, rel=1e-2)  # the squares add up


def test_flow_matching_on_a_gaussian_costs_s2_over_spread2():
    world = Gaussian(Flow(), torch.zeros(8).double(), torch.full((8,), STD).double())
    t, param = torch.tensor(0.25, dtype=torch.float64), build("diffusion.parameterisation", "velocity")
    f = Denoiser(Exact(world, param, t), Flow(), param)
    loss = float(next(Denoising(times=Point(0.25))({"net": f}, batch()))[1])
    assert loss == pytest.approx(STD**2 / (0.75**2 * STD**2 + 0.25**2), rel=0.03)


PARAMS, WEIGHTINGS = names("diffusion.parameterisation"), names("diffusion.weighting")
PAIRS = [  # every path with every parameterisation, and every weighting with each of them somewhere
    (path, param, WEIGHTINGS[(i + j) % len(WEIGHTINGS)])
    for (i, path), (j, param) in itertools.product(enumerate(PATHS), enumerate(PARAMS))
]


@pytest.mark.parametrize(("path", "param", "weighting"), PAIRS)
def test_every_pair_gives_finite_losses_and_gradients(path, param, weighting):
    net = tiny().model.build()
    nn.init.normal_(net.final_layer.linear.weight, std=0.1)
    f = Denoiser(net, path, build("diffusion.parameterisation", param))
    noise = training_noise(0, 0, range(32))
    x = noise.normal("data", (1, 8, 8)).clamp(-1, 1)
    data = Batch(x, {"y": noise.integers("y", 10)}, noise)
    times = Integers() if isinstance(path, DDPM) else LogitNormal()
    objective = Denoising(times=times, weighting=build("diffusion.weighting", weighting))
    ((role, loss, _),) = objective({"net": f}, data)
    loss.backward()
    assert role == "net" and torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert torch.isfinite(objective.validate({"net": f}, data))


def test_the_condition_is_dropped_for_its_share_of_rows():
    noise = training_noise(0, 0, range(4000))
    data = Batch(torch.zeros(4000, 1, 8, 8), {"y": noise.integers("y", 10)}, noise)
    f = Denoiser(tiny().model.build(), Flow(), build("diffusion.parameterisation", "velocity"))
    dropped = drop_condition(f, data, 0.1)["y"]
    assert float((dropped == 10).double().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(dropped[dropped != 10], data.cond["y"][dropped != 10])
    assert drop_condition(f, data, 0.0) is data.cond
    with pytest.raises(UserError, match=r"class_dropout = 1\.5"):
        Denoising(class_dropout=1.5)
