"""Learned loss weights: at a known error the best log-variance, and the loss there, are known in closed form."""

import pytest
import torch
from torch import nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, EDMPrecond, Velocity
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.times import Integers, Uniform
from gen.diffusion.weighting import UniformWeighting
from gen.models.dit import DiT
from gen.models.edm2 import EDM2
from gen.pipeline import load
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.uncertainty import LogVariance, Uncertainty
from gen.training.trainer import train
from tests.gen.tiny import tiny

ERROR = 0.3


class Off(nn.Module):
    """A network that is wrong by ERROR everywhere, where the data is 0 and the target x0."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        return torch.full_like(x, ERROR)


def zeros(n=16):
    return Batch(torch.zeros(n, 1, 8, 8, dtype=torch.float64), {}, training_noise(0, 0, range(n)))


def digits_like(n=8):
    noise = training_noise(0, 0, range(n))
    return Batch(noise.normal("data", (1, 8, 8)), {"y": noise.integers("y", 10)}, noise)


def test_the_best_log_variance_is_the_logarithm_of_the_weighted_error():
    """w e^2 / e^u + u is least at u = ln(w e^2), where it is 1 + ln(w e^2)."""
    objective, data = Uncertainty(), zeros()
    head = LogVariance(128).double()
    roles = {"net": Denoiser(Off(), EDM(), X0()), "head": Denoiser(head, EDM(), X0())}
    sigma = objective.times.at(data.noise.uniform("t"), EDM())
    weighted = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * ERROR**2  # EDM's lambda(sigma) on the error of x0
    (first,) = objective(roles, data)
    assert first[0] == ("net", "head")
    assert first[1].item() == pytest.approx(weighted.mean().item(), rel=1e-6)  # u = 0 when freshly made
    assert first[2]["error"].item() == pytest.approx(weighted.mean().item(), rel=1e-6)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        loss = next(objective(roles, data))[1]
        loss.backward()
        return loss

    optimiser.step(closure)
    assert next(objective(roles, data))[1].item() == pytest.approx(1 + weighted.log().mean().item(), abs=1e-5)
    torch.testing.assert_close(objective.logvar(roles, sigma).double(), weighted.log(), atol=0.01, rtol=0)


def test_validation_is_the_plain_weighted_loss():
    torch.manual_seed(0)
    roles = {"net": Denoiser(EDM2.preset("digits").build(), EDM(), EDMPrecond())}
    objective = Uncertainty()
    plain = Denoising(times=objective.times, weighting=objective.weighting)
    assert torch.equal(objective.validate(roles, digits_like()), plain.validate(roles, digits_like()))


@pytest.mark.parametrize(
    ("path", "times"), [(p, Uniform()) for p in (EDM(), Flow(), VP(), Trig())] + [(DDPM(), Integers())]
)
def test_every_path_gives_finite_losses_and_gradients_to_both(path, times):
    torch.manual_seed(0)
    net = DiT.preset("digits", width=16, depth=1).build()
    nn.init.normal_(net.final_layer.linear.weight, std=0.1)
    objective = Uncertainty(times=times, weighting=UniformWeighting())
    roles = {k: Denoiser(v, path, Velocity()) for k, v in objective.roles(net, None).items()}
    ((role, loss, _),) = objective(roles, digits_like())
    loss.backward()
    assert role == ("net", "head") and loss.isfinite()
    for f in roles.values():
        grads = [p.grad for p in f.net.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in grads) and any(g.abs().max() > 0 for g in grads)


def test_the_head_is_finite_at_both_ends_of_time():
    objective = Uncertainty()
    head = LogVariance(8)
    nn.init.normal_(head.linear.weight)
    roles = {"net": Denoiser(Off(), Flow(), Velocity()), "head": Denoiser(head, Flow(), Velocity())}
    u = objective.logvar(roles, torch.tensor([0.0, 1e-12, 0.5, 1.0], dtype=torch.float64))
    assert u.isfinite().all() and u[0] == u[1] and u[0] != u[2]


def test_edm2_brings_its_own():
    torch.manual_seed(0)
    net = EDM2.preset("digits", uncertainty=16).build()
    objective = Uncertainty()
    assert objective.roles(net, None) == {"net": net}
    roles = {"net": Denoiser(net, EDM(), EDMPrecond())}
    ((role, loss, _),) = objective(roles, digits_like())
    loss.backward()
    assert role == "net"
    assert net.logvar_linear.weight.grad.abs().max() > 0 and net.unet.out_gain.grad.abs() > 0
    sigma = torch.tensor([0.1, 2.0])
    assert torch.equal(objective.logvar(roles, sigma), net.logvar(sigma.log() / 4))


def test_the_head_is_saved_apart_and_the_run_goes_on_with_the_same_bits(tmp_path):
    changes = {
        "objective": Uncertainty(class_dropout=0.1),
        "path": "edm",
        "parameterisation": "edm_precond",
        "steps": 4,
        "validate_every": 0,
    }
    train(tiny(**changes, save_every=2), tmp_path / "whole", quiet=True)
    train(tiny(**changes | {"steps": 2}), tmp_path / "parts", quiet=True)
    train(tiny(**changes), tmp_path / "parts", quiet=True)
    last = [checkpoints.read(tmp_path / f / "checkpoints/step-0000004")["files"] for f in ("whole", "parts")]
    assert last[0] == last[1]
    assert {"net.safetensors", "head.safetensors", "state/head.safetensors"} <= set(last[0])
    assert not any("freqs" in name for name in load(tmp_path / "whole").denoiser.net.state_dict())


def test_spec_round_trip_and_a_wrong_width():
    objective = Uncertainty(channels=32)
    assert build("training.objectives", spec_of(objective)) == objective
    with pytest.raises(UserError, match="channels = 0"):
        Uncertainty(channels=0)
