"""Restoration and DocDiff: the residual is diffused, the base is added again, gradients flow where they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.data.low_digits import LowDigits
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import DDPM, Shift
from gen.diffusion.times import Integers
from gen.models.beside import Beside
from gen.models.layers.wrapper import Wrapper
from gen.models.unet import UNet
from gen.operators.inpaint import Inpaint
from gen.operators.pool import Pool
from gen.pipeline import Pipeline
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.docdiff import DocDiff, laplacian
from gen.training.objectives.restore import Restoration
from gen.training.run import Run, Sampler

UNET = UNet(size=8, channels=1, classes=0, width=8, multipliers=(1, 1), blocks=1, attention=(), head_width=8, groups=4)


def batch(n=4):
    noise = training_noise(0, 0, range(n))
    x, low = noise.normal("x", (1, 8, 8)), noise.normal("low", (1, 4, 4))
    return Batch(x, {"low": low}, noise)


class Known(nn.Module):
    """A network of residuals whose base is the mean of cond["low"] times a weight; it says what it is told."""

    def __init__(self, told):
        super().__init__()
        self.spec, self.told, self.weight = replace(UNET, size=8), told, nn.Parameter(torch.tensor(1.0))
        self.seen = []

    def base_picture(self, cond, size):
        return self.weight * cond["low"].mean((1, 2, 3), keepdim=True).expand(-1, 1, *size)

    def forward(self, x, t, cond, *, s=None, tap=None):
        self.seen.append(cond["base"])
        return self.told(cond)

    def null(self, cond):
        return cond


class Around(Wrapper):
    """A network around another one."""

    def __init__(self, inner):
        super().__init__(inner.spec)
        self.inner = inner

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.inner(x, t, cond, s=s, tap=tap)


def loss(objective, net, data, path=None):
    return next(iter(objective({"net": Denoiser(net, path or Shift(), X0())}, data)))[1]


def test_restoration_is_denoising_of_the_residual():
    data = batch()
    net = Known(lambda cond: 0.1 * cond["base"])
    base = net.base_picture(data.cond, (8, 8)).detach()
    shifted = replace(data, x=data.x - base, cond={**data.cond, "base": base})
    found = loss(Restoration(class_dropout=0.0), net, data)
    assert torch.equal(found, loss(Denoising(class_dropout=0.0), net, shifted))
    assert not found.requires_grad  # of a network whose weights are all in the base
    roles = {"net": Denoiser(net, Shift(), X0())}
    assert torch.equal(Restoration().validate(roles, data), Denoising().validate(roles, shifted))


def test_an_operator_degrades_the_batch_anew_at_every_step():
    data = batch()
    bare = replace(data, cond={})
    made = Restoration(operator=Pool(2), noise=0.1).degraded(bare).cond["low"]
    rest = made - nn.functional.avg_pool2d(data.x, 2)
    assert made.shape == (4, 1, 4, 4) and 0.05 < float(rest.std()) < 0.2
    other = Restoration(operator=Pool(2), noise=0.1).degraded(replace(bare, noise=training_noise(0, 1, range(4))))
    assert not torch.equal(other.cond["low"], made)
    matrix = Restoration(operator=Inpaint(box=(2, 6, 2, 6))).degraded(bare).cond["low"]
    assert matrix.shape == data.x.shape and not matrix[..., 2:6, 2:6].any()
    run = Run(model=Beside(inner=UNET), data=LowDigits(), objective=Restoration(operator=Pool(2)), path=Shift())
    assert run.objective.operator == Pool(2) and run.objective.times == Integers()
    for wrong, why in (
        (lambda: Restoration(operator=Pool(2)).degraded(data), "give one of the two"),
        (lambda: Restoration(noise=0.1), "noise = 0.1 without an operator"),
    ):
        with pytest.raises(UserError, match=why):
            wrong()


def test_the_laplacian_sees_neither_constants_nor_ramps_but_points():
    x = torch.stack([torch.ones(5, 5), torch.arange(25.0).reshape(5, 5), torch.zeros(5, 5)])[None]
    x[0, 2, 2, 2] = 1
    flat, ramp, point = laplacian(x)[0]
    assert not flat[1:-1, 1:-1].any() and not ramp[1:-1, 1:-1].any()
    assert point[2, 2] == 8 and float(point.sum()) == 0 and int((point == -1).sum()) == 8


def test_docdiff_is_nought_where_both_are_right_and_its_terms_are_the_formula_s():
    data = batch()
    flat = replace(data, x=data.cond["low"].mean((1, 2, 3), keepdim=True).expand(-1, 1, 8, 8).contiguous())
    right = loss(DocDiff(), Known(lambda cond: 0 * cond["base"]), flat, DDPM(steps=100, beta_start=1e-5, beta_end=0.2))
    assert float(right.detach()) == 0
    net = Known(lambda cond: 0 * cond["base"])
    error = net.base_picture(data.cond, (8, 8)) - data.x
    high = laplacian(error)
    fine = error.square().mean() + 2 * high.square().mean()
    coarse = error.square().mean() + 2 * (error - high).square().mean()
    torch.testing.assert_close(loss(DocDiff(), net, data), fine + 0.5 * coarse)


def test_docdiff_s_gradients_reach_the_coarse_network_through_the_residual_alone():
    net, data = Known(lambda cond: cond["base"] ** 2), batch()
    net.weight.data.fill_(0.7)
    objective = DocDiff(coarse=0.0)
    (found,) = torch.autograd.grad(loss(objective, net, data), net.weight)
    assert not net.seen[-1].requires_grad
    unit = data.cond["low"].mean((1, 2, 3), keepdim=True).expand(-1, 1, 8, 8)
    error = (0.7 * unit) ** 2 - (data.x - 0.7 * unit)  # its slope in the residual's weight is `unit`
    expected = 2 * (error * unit).mean() + 4 * (laplacian(error) * laplacian(unit)).mean()
    torch.testing.assert_close(found, expected)


def test_a_network_that_adds_nothing_gives_back_the_enlarged_picture():
    spec = Beside(inner=UNET)
    net, low = spec.build().eval(), batch().cond["low"]
    pipeline = Pipeline(Denoiser(net, Shift(), X0()), (1, 8, 8), 0, Sampler("euler", steps=3))
    enlarged = nn.functional.interpolate(low, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(pipeline.sample(cond={"low": low}, trajectory=True).x, enlarged)
    torch.testing.assert_close(net.base_picture({"low": enlarged}, (8, 8)), enlarged)
    prepared = replace(pipeline, denoiser=replace(pipeline.denoiser, net=Around(net)))  # as an engine puts around it
    torch.testing.assert_close(prepared.sample(cond={"low": low}).x, enlarged)
    assert net.state_shape == (1, 8, 8) and net.conditions == ("low",)
    for wrong in (None, {"low": low[:, 0]}, {"low": low.long()}):
        with pytest.raises(UserError, match="needs cond\\['low'\\]") as caught:
            pipeline.sample(4, wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="edits none"):
        pipeline.sample(cond={"low": low}, image=torch.zeros(1, 8, 8))


def test_a_coarse_network_refines_the_base_and_is_trained_with_the_denoiser():
    torch.manual_seed(0)
    spec = Beside(inner=UNET, coarse=UNET)
    net, data = spec.build(), batch()
    objective = DocDiff()
    assert objective.roles(net, None) == {"net": net}
    optimiser, losses = torch.optim.Adam(net.parameters(), 3e-3), []
    for _ in range(8):
        found = loss(objective, net, data)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        losses.append(float(found.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert net.coarse.out[-1].weight.abs().sum() > 0 and net.inner.out[-1].weight.abs().sum() > 0
    given = net.base_picture(data.cond, (8, 8))
    x, t = data.x, torch.full((4,), 3.0)
    assert torch.equal(net(x, t, data.cond), net(x, t, {**data.cond, "base": given}))
    for wrong, why in (
        (lambda: Beside(inner=UNET, coarse=replace(UNET, channels=2)), "must be as inner"),
        (lambda: DocDiff().roles(Beside(inner=UNET).build(), None), "set model.coarse"),
        (lambda: Restoration().roles(UNET.build(), None), "trains the model beside"),
    ):
        with pytest.raises(UserError, match=why):
            wrong()
