"""Knowledge distillation: the mean over pairs of one look at the noise, which a table learns exactly."""

import pytest
import torch
from torch import nn

from gen.config.errors import MissingDependency, UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0, Eps
from gen.diffusion.path import EDM, Flow
from gen.diffusion.sampling import integrate
from gen.distillers.distances.lpips import Lpips
from gen.distillers.distances.square import Square
from gen.distillers.knowledge import Knowledge
from gen.samplers.solvers.euler import Euler
from tests.distill.line import world
from tests.distill.tables import Curve, Straight, end_of, gaussian_pairs, mixture_pairs, off, solve, spread
from tests.gen.tiny import tiny


def test_a_student_of_a_mixture_is_its_quantile_map():
    mixture, z = world(), spread()
    f = Denoiser(Curve(1), Flow(), X0())
    solve(Knowledge(), {"net": f}, mixture_pairs(mixture, 4000), 80)
    assert off(integrate(f, z, [1.0, 0.0], Euler()), end_of(mixture, z)) < 1e-2


@pytest.mark.parametrize("path", [Flow(), EDM(8.0)], ids=repr)
def test_the_loss_is_that_of_the_sampler_s_own_first_step(path):
    batch = gaussian_pairs(20, path)
    f = Straight(path).denoiser()
    z = batch.origin.normal("start", (3,)).double()
    one = integrate(f, path.start(z, torch.tensor(path.t1)), [path.t1, 0.0], Euler())
    loss = next(Knowledge()({"net": f}, batch))[1]
    assert torch.allclose(loss, ((one - batch.x) ** 2).mean())


def test_a_prediction_that_says_nothing_at_the_start_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not determine x0 at t = 1"):
        Knowledge().student(tiny(parameterisation=Eps()), tmp_path, tmp_path)


def test_lpips_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    image = torch.zeros(2, 1, 8, 8)
    with pytest.raises(MissingDependency, match=r"pip install 'gen-diffusion\[lpips\]'"):
        Lpips()(image, image)
    with pytest.raises(UserError, match="compares images"):
        Lpips()(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    with pytest.raises(UserError, match="net: got 'squeeze'"):
        Lpips(net="squeeze")


def test_lpips_sees_three_enlarged_channels_and_pools_by_means():
    from gen.distillers.distances.lpips import _average_pooling

    assert Lpips(size=32).enlarged(torch.ones(2, 1, 8, 8)).shape == (2, 3, 32, 32)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.MaxPool2d(2, 2)))
    _average_pooling(net)
    assert isinstance(net[1][0], nn.AvgPool2d)
    assert torch.equal(net[1](torch.arange(4.0).reshape(1, 1, 2, 2)).flatten(), torch.tensor([1.5]))


def test_the_mean_square_is_by_sample():
    assert Square()(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]), torch.zeros(2, 1, 2)).tolist() == [12.5, 0.0]
    assert isinstance(Knowledge().distance, Square)
