"""A network moved to another path: the same x0 and eps, to rounding, from the same weights."""

import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.models.mlp import MLP
from gen.models.reparameterised import Reparameterised

FROM = [(EDM(), EDMPrecond()), (DDPM(), Eps()), (VP(), V()), (Flow(), X0())]
TO = [(Flow(), Velocity()), (Trig(), V()), (VP(), Eps())]


def random(net):
    torch.manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return net.double().requires_grad_(False)


@pytest.mark.parametrize(("here", "there"), list(itertools.product(FROM, TO)), ids=lambda v: repr(v))
def test_x_0_and_eps_are_the_inner_network_s(here, there):
    net = random(Reparameterised(MLP(time_scale=1.0), *here, *there).build())
    inner, f = Denoiser(net.inner, *here), Denoiser(net, *there)
    lam = torch.linspace(-4, 4, 9, dtype=torch.float64)
    x0, eps = torch.randn(2, 9, 2, 1, 1, dtype=torch.float64).unbind()
    t, s = here[0].t_from_lambda(lam), there[0].t_from_lambda(lam)
    exact, other = inner(here[0].mix(x0, eps, t), t), f(there[0].mix(x0, eps, s), s)
    assert torch.allclose(other.x0, exact.x0, rtol=1e-8, atol=1e-8)
    assert torch.allclose(other.eps, exact.eps, rtol=1e-8, atol=1e-8)


def test_an_edm_denoiser_as_a_velocity():
    """v = (x - D(x / (1 - t), t / (1 - t))) / t for t in [1e-5, 1 - 1e-5], and no further (rf++, proposition 1)."""
    edge = EDM(sigma_max=1e5)
    net = random(Reparameterised(MLP(time_scale=1.0), edge, EDMPrecond(), reach=1e5).build())
    d, x = Denoiser(net.inner, edge, EDMPrecond()), torch.randn(5, 2, 1, 1, dtype=torch.float64)
    t = torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0], dtype=torch.float64)
    inside = t.clamp(1e-5, 1 - 1e-5)
    exact = (x - d(x / (1 - inside)[:, None, None, None], inside / (1 - inside)).x0) / inside[:, None, None, None]
    assert torch.allclose(net(x, t, {}), exact, rtol=1e-4)  # (1 / 1e5 is 1e-5 / (1 - 1e-5) to that)
    middle = slice(1, 4)
    assert torch.allclose(net(x, t, {})[middle], exact[middle], rtol=1e-9)


def test_the_teacher_s_weights_alone_go_in():
    spec = MLP()
    teacher, net = random(spec.build().float()), Reparameterised(spec).build().double()
    net.load_state_dict(teacher.state_dict())
    assert all(torch.equal(net.inner.state_dict()[k], v) for k, v in teacher.state_dict().items())
    again = Reparameterised(spec).build().double()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.inner.x_embedder.weight, teacher.x_embedder.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({"x_embedder.weight": teacher.x_embedder.weight})


@pytest.mark.parametrize("to", [{"to_path": EDM()}, {"to_path": DDPM()}, {"to_parameterisation": EDMPrecond()}])
def test_forms_that_speak_another_time_or_scale_are_refused(to):
    with pytest.raises(UserError, match="allowed are the paths flow, trig and vp"):
        Reparameterised(MLP(), **to)
    with pytest.raises(UserError, match="reach = 1"):
        Reparameterised(MLP(), reach=1)
