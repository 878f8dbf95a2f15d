"""f-distill: every divergence's gradient against quadrature; its weights, ratios and discriminator."""

import math

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow, expand
from gen.distillers.dmd2 import DMD2
from gen.distillers.f_distill import WEIGHTS, DensityRatios, FDistill
from gen.distillers.lib import score
from gen.models.mlp import MLP
from gen.training.objectives import Batch
from tests.distill.gaussians import PATH, at_nodes, quick, student, world

F = {
    "reverse_kl": lambda r: -r.log(),
    "softened_reverse_kl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "hellinger": lambda r: 1 - r.sqrt(),
    "forward_kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: 1 / r - 1,
    "pearson": lambda r: (r - 1) ** 2,
}
OPEN = {"scale": "kl", "normalise": "none", "ratio_clip": (1e-9, 1e9)}
LEVEL, TEACHER = 0.7, (0.4, 1.0)


def log_density(x, mean, std):
    variance = std**2 + LEVEL**2
    return -((x - mean) ** 2) / (2 * variance) - (2 * math.pi * variance).log() / 2


def quadrature(divergence, mean, std):
    """d / d(mean, std) of E_q f(p / q) at the noise level, by the trapezoid rule on x and autograd."""
    mean, std = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (mean, std))
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    p = log_density(x, *(torch.tensor([v], dtype=torch.float64) for v in TEACHER))
    q = log_density(x, mean, std)
    value = (q.exp() * F[divergence]((p - q).exp())).sum() * (x[1] - x[0])
    return torch.cat(torch.autograd.grad(value, (mean, std)))


@pytest.mark.parametrize("divergence", F)
def test_the_gradient_is_that_of_the_divergence(divergence):
    f, teacher = student(-0.1, 0.9), world(*TEACHER)
    fake = world(f.net.mean, f.net.std)
    y, eps, t, w = at_nodes(f, LEVEL)
    x = PATH.mix(y, eps, t).detach()
    ends = (log_density(x, d.mean, d.std)[:, 0] for d in (teacher, fake))
    logit = next(ends) - next(ends)  # of the optimal discriminator
    assert float(logit[(w > 1e-9)].abs().max()) < 10
    h, _ = FDistill(divergence=divergence, **OPEN).weights(logit, torch.zeros(len(x)).long(), torch.ones(10).double())
    step = expand(h, y) * score.dmd_gradient(PATH, y, t, fake(x, t).x0, teacher(x, t).x0, "kl")
    (w * score.surrogate_losses(y, step)).sum().backward()
    got = torch.cat([f.net.mean.grad, f.net.std.grad])
    assert (got - quadrature(divergence, -0.1, 0.9)).abs().max() < 2e-6


@pytest.mark.parametrize("divergence", F)
def test_a_weight_is_r_squared_times_the_second_derivative(divergence):
    r = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(F[divergence](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert torch.allclose(WEIGHTS[divergence](r.detach().log()), r.detach() ** 2 * second, rtol=1e-12)


def test_the_weight_of_js_is_the_discriminators_probability():
    logit, place = torch.linspace(-9, 9, 50, dtype=torch.float64), torch.zeros(50).long()
    h, _ = FDistill(divergence="js", **OPEN).weights(logit, place, torch.ones(10).double())
    assert torch.allclose(h, torch.sigmoid(logit), rtol=1e-14)


@pytest.mark.parametrize("divergence", F)
def test_weights_have_mean_one_and_known_sample_sizes(divergence):
    """Of unit Gaussians at a distance d the effective share is exp(-d^2) for forward KL, exp(-d^2 / 4) for SH."""
    d, n = 1.0, 200_000
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    logit = d * x - d**2 / 2
    free = {"ratio_clip": (1e-9, 1e9)}
    h, logs = FDistill(divergence=divergence, normalise="batch", **free).weights(
        logit, torch.zeros(n).long(), torch.ones(10).double()
    )
    assert float(h.mean()) == pytest.approx(1, abs=1e-12)
    known = {"reverse_kl": 1.0, "forward_kl": math.exp(-(d**2)), "hellinger": math.exp(-(d**2) / 4), "js": 0.80}
    if divergence in known:
        assert float(logs["weight_ess"]) == pytest.approx(known[divergence], abs=5e-3)


def test_ratios_are_clipped_then_divided_by_the_mean_of_their_bin():
    logit = torch.tensor([2.0, 1.0, 0.5, -9.0], dtype=torch.float64).exp().log()
    place, ratios = torch.tensor([0, 0, 3, 3]), DensityRatios(4)
    objective = FDistill(divergence="forward_kl", normalise="time", bins=4, ratio_decay=0.25)
    h, logs = objective.weights(logit, place, ratios.mean)
    r = torch.tensor([math.exp(2), math.exp(1), math.exp(0.5), 0.1], dtype=torch.float64)
    means = torch.stack([r[:2].mean(), torch.tensor(1.0).double(), torch.tensor(1.0).double(), r[2:].mean()])
    blended = 0.25 + 0.75 * means
    assert torch.allclose(h, r / blended[place])
    roles = {"ratios": Denoiser(ratios, Flow(), Velocity())}
    objective.observe(roles, {key: float(value) for key, value in logs.items()})
    assert torch.allclose(ratios.mean, blended)  # an empty bin stays as it was


# -- whole steps -------------------------------------------------------------------------------------------------------


def points(n=16):
    return Batch(torch.randn(n, 2, 1, 1), {}, training_noise(0, 0, range(n)))


def nets(objective, width=16):
    """Roles with random weights: a fresh MLP says zero whatever it is asked."""
    spec = MLP(width=width, depth=2)
    teacher = Denoiser(scattered(spec.build()).requires_grad_(False), Flow(), Velocity())
    made = objective.roles(scattered(spec.build()), teacher)
    return {role: Denoiser(net, Flow(), Velocity()) for role, net in made.items()} | {"teacher": teacher}


def scattered(net, seed=0):
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def test_reverse_kl_is_dmd2():
    plain, ours = DMD2(), FDistill(divergence="reverse_kl", gan_weight=0.0)
    batch, found = points(), []
    for objective in (plain, ours):
        roles = nets(objective)
        scattered(roles["fake"].net, 1)
        scattered(roles["net"].net, 2)
        role, loss, logs = next(objective(roles, batch))
        loss.backward()
        found.append((loss.detach(), *(p.grad for p in roles["net"].net.parameters())))
        assert role == "net" and logs["matching"].item() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("features", ["teacher", "fake"])
def test_who_gets_gradients(features):
    objective = FDistill(features=features, r1=1.0, gan_weight=1.0, critic_steps=2)
    roles, batch = nets(objective), points()
    for net in (roles["disc"].net, roles["fake"].net):
        scattered(net, 1)
    seen = []
    for role, loss, logs in objective(roles, batch):
        loss.backward()
        trained = ("net",) if role == "net" else role
        for name in ("net", "fake", "disc", "teacher"):
            given = [p.grad for p in roles[name].net.parameters() if p.grad is not None and bool(p.grad.any())]
            assert bool(given) == (name in trained), (role, name)
            roles[name].net.zero_grad(set_to_none=True)
        assert all(bool(torch.isfinite(v)) for v in logs.values())
        seen.append(role)
    assert seen == ["net", ("fake", "disc"), ("fake", "disc")]
    assert {"real_accuracy", "fake_accuracy", "fake_lag"} <= set(logs)
    assert all(p.requires_grad for p in roles["fake"].net.parameters())


def test_the_adversarial_gradient_goes_through_the_features():
    """With the scores equal nothing but the discriminator moves the student."""
    for weight, moved in ((0.0, False), (1.0, True)):
        objective = FDistill(gan_weight=weight)
        roles = nets(objective)
        scattered(roles["disc"].net, 1)
        _, loss, _ = next(objective(roles, points()))
        loss.backward()
        size = max(float(p.grad.abs().max()) for p in roles["net"].net.parameters() if p.grad is not None)
        assert (size > 1e-6) == moved


@pytest.mark.slow
def test_the_discriminator_learns_the_ratio():
    """Data N(1, .5^2) against samples N(0, .5^2), noised: the logit becomes the log ratio, an affine function."""
    objective = FDistill(features="fake", disc_weight=1.0, hidden=32)
    spec = MLP(channels=1, width=32, depth=2)
    roles = {r: Denoiser(n, Flow(), Velocity()) for r, n in objective.roles(spec.build(), Toy()).items()}
    optim = torch.optim.Adam([*roles["disc"].net.parameters(), *roles["fake"].net.parameters()], lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.02, 300)
    for step in range(300):
        x, y = (m + 0.5 * torch.randn(256, 1, 1, 1) for m in (1.0, 0.0))
        batch = Batch(x, {}, quick(step, 256))
        loss, _ = objective.critic_loss(roles, batch, y, "critic.0")
        optim.zero_grad()
        loss.backward()
        optim.step()
        decay.step()
    t, x = torch.full((9,), 0.3, dtype=torch.float64), torch.linspace(-0.3, 1.0, 9).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        got = objective.logits(roles, Batch(x, {}, training_noise(0, 0, range(9))), x, t)
    variance = (0.7 * 0.5) ** 2 + 0.3**2
    truth = (0.7 * x.flatten() - 0.7**2 / 2) / variance
    assert (got - truth).abs().mean() < 0.25, (got, truth)


class Toy:
    """A teacher that is no network."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        raise NotImplementedError


def test_a_teacher_without_features_is_refused():
    with pytest.raises(UserError, match="take fake"):
        FDistill().roles(MLP().build(), Toy())
    with pytest.raises(UserError, match=r"has no tokens at .hidden\.9."):
        FDistill(features="fake", sites=("hidden.9",)).roles(MLP().build(), Toy())
    with pytest.raises(UserError, match="needs a teacher"):
        FDistill().roles(MLP().build(), None)
