"""DMD2: its gradient and normalisation, its order of updates, its two time scales, its own walk in several steps."""

import math

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.data.mixture import MixturePoints
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, Eps, Velocity
from gen.diffusion.path import EDM, VP, Flow, Prediction, Trig
from gen.diffusion.times import Point, Uniform
from gen.diffusion.weighting import EDMWeighting
from gen.diffusion.worlds import Gaussian
from gen.distillers.dmd2 import DMD2
from gen.distillers.lib import score
from gen.models.mlp import MLP
from gen.samplers.grids.given import Given
from gen.training.objectives import Batch
from gen.training.run import Sampler
from gen.training.trainer import train
from tests.distill.gaussians import PATH, Affine, Paired, at_nodes, f64, quick, student, world
from tests.distill.test_f_distill import nets, points, scattered
from tests.gen.tiny import tiny


def test_the_gradient_is_that_of_reverse_kl():
    """[(mu - m) / P^2, q (1 / P^2 - 1 / Q^2)] for N(mu, q^2) against N(m, s^2), both noised by g (section 3)."""
    mu, q, m, s, g = -0.1, 0.8, 0.4, 1.0, 0.7
    f, teacher, fake = student(mu, q), world(m, s), world(mu, q)
    y, eps, t, w = at_nodes(f, g)
    x = PATH.mix(y, eps, t).detach()
    step = score.dmd_gradient(PATH, y, t, fake(x, t).x0, teacher(x, t).x0, "kl")
    (w * score.surrogate_losses(y, step)).sum().backward()
    p, now = s**2 + g**2, q**2 + g**2
    truth = torch.tensor([(mu - m) / p, q * (1 / p - 1 / now)], dtype=torch.float64)
    assert (torch.cat([f.net.mean.grad, f.net.std.grad]) - truth).abs().max() < 1e-9


def test_the_step_is_the_published_one():
    """1/2 mse(x, stop(x - g)), g = (fake - real) / mean|x - real| of each sample, the mean over all elements."""
    y, fake, real = (torch.randn(4, 2, 3, 3, dtype=torch.float64) for _ in range(3))
    y.requires_grad_()
    gradient = score.dmd_gradient(Flow(), y, torch.rand(4).double(), fake, real, "error")
    score.surrogate_losses(y, gradient).mean().backward()
    error = (y - real).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(y.grad, ((y - real) - (y - fake)) / error / y.numel())


def test_the_order_of_updates():
    """The student first; the first critic update is on its samples, the others on fresh ones; then the lag is known."""
    roles, batch = nets(DMD2()), points()
    scattered(roles["fake"].net, 1)
    met, learnt = [], DMD2.critic_loss

    class Watching(DMD2):
        def critic_loss(self, roles, batch, y, name):
            met.append(y)
            return learnt(self, roles, batch, y, name)

    watching = Watching(critic_steps=3)
    noise, grid = score.fold_in(batch.noise, "student"), torch.tensor([1.0, 0.0]).double()
    x, t = score.backward_simulate(roles["net"], batch, noise, grid)
    own = roles["net"](x, t, {}).x0
    order = [role for role, _, logs in watching(roles, batch)]
    assert order == ["net", "fake", "fake", "fake"]
    assert torch.equal(met[0], own) and not torch.equal(met[1], own) and not torch.equal(met[1], met[2])
    assert not any(y.requires_grad for y in met)


def test_the_lag_is_what_the_fake_score_had_to_learn():
    objective = DMD2(critic_steps=60)
    roles = nets(objective)
    batch = Batch(torch.randn(64, 2, 1, 1), {}, quick(0, 64))
    optim = torch.optim.Adam(roles["fake"].net.parameters(), lr=1e-2)
    for role, loss, logs in objective(roles, batch):
        last = logs
        if role == "fake":
            optim.zero_grad()
            loss.backward()
            optim.step()
    assert float(last["fake_lag"]) > 0.1


class Mean(nn.Module):
    """The denoiser of N(mean, 1): x0 = (x + sigma^2 mean) / (1 + sigma^2)."""

    def __init__(self, mean):
        super().__init__()
        self.mean = nn.Parameter(f64(mean))

    def forward(self, x, t, cond, *, s=None, tap=None):
        square = (8 * t[:, None]).exp()  # on EDM's path a network is told ln(sigma) / 4
        return (x + square * self.mean) / (1 + square)


class Shift(Affine):
    """A student of which the mean alone is learnt."""

    def __init__(self, start):
        super().__init__(1.0, 1.0, start)
        self.std.requires_grad_(False)


def overshoot(ratio, lr=0.03):
    """How far the student's mean passes the teacher's 0 from 1, with `ratio` updates of the fake mean to each of its.

    At noise level 1/sqrt(2) and EDM's weight the two have equal rates, mu' = -psi, psi' = ratio (mu - psi).
    """
    level = math.sqrt(0.5)
    path = EDM(level)
    roles = {
        "net": Denoiser(Shift(level), path, X0()),
        "fake": Denoiser(Mean(1.0), path, X0()),
        "teacher": Gaussian(path, torch.zeros(1).double(), torch.ones(1).double()),
    }
    objective = DMD2(times=Point(), critic_times=Point(), scale="kl", weighting=EDMWeighting(1.0), critic_steps=ratio)
    optims = {role: torch.optim.SGD([roles[role].net.mean], lr) for role in ("net", "fake")}
    lowest, mean = 1.0, roles["net"].net.mean
    for step in range(600):
        batch = Batch(torch.zeros(2, 1).double(), {}, Paired(training_noise(0, step, range(2)).seeds))
        for role, loss, _ in objective(roles, batch):
            optims[role].zero_grad()
            loss.backward()
            optims[role].step()
        if mean.item() > lowest + 1e-6:
            break
        lowest = mean.item()
    return max(0.0, -lowest)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "expected"), [(1, 0.298), (2, 0.067), (4, 0.0)])
def test_a_slow_fake_score_makes_the_student_overshoot(ratio, expected):
    """The oscillation of brightness that DMD2's five critic updates cure: real eigenvalues from four on."""
    assert overshoot(ratio) == pytest.approx(expected, abs=0.02)


# -- several steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [Flow(), VP(), Trig(), EDM(2.0)], ids=repr)
def test_the_student_is_trained_where_its_own_walk_leads(path):
    """Inputs at rung k are what Renoise makes of the student itself, the samples' rungs are spread evenly."""
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 0.6]).double()
    f = Gaussian(path, mean, std)
    grid = torch.tensor([0.9, 0.5, 0.2, 0.0]).double() * path.t1
    n = 3000
    batch = Batch(torch.zeros(n, 2).double(), {}, training_noise(0, 0, range(n)))
    x, t = score.backward_simulate(f, batch, batch.noise, grid)
    for k in range(3):
        at = t == grid[k]
        assert 0.28 < float(at.double().mean()) < 0.39
        assert torch.allclose(
            x[at].mean(0), path.alpha(grid[k]) * mean * (k > 0), atol=0.2 * float(path.sigma(grid[0]))
        )
    whole = score.sample_student(f, batch, batch.noise, grid)
    at = t == grid[2]
    assert torch.allclose(f(x[at], t[at]).x0, whole[at])  # the last rung's sample is the sampler's


def test_one_step_begins_in_the_samplers_noise():
    f, batch = Gaussian(Flow(), torch.zeros(2).double(), torch.ones(2).double()), points()
    batch = Batch(batch.x.flatten(1), {}, batch.noise)
    x, t = score.backward_simulate(f, batch, batch.noise, torch.tensor([1.0, 0.0]).double())
    assert torch.equal(x, batch.noise.normal("start", (2,))) and bool((t == 1).all())


# -- gradients and refusals --------------------------------------------------------------------------------------------


def test_who_gets_gradients():
    objective = DMD2(gan_weight=1.0, disc_weight=1.0, critic_steps=2)
    roles, batch = nets(objective), points()
    for net in (roles["disc"].net, roles["fake"].net):
        scattered(net, 1)
    for role, loss, logs in objective(roles, batch):
        loss.backward()
        trained = ("net",) if role == "net" else role
        for name in ("net", "fake", "disc", "teacher"):
            given = [p.grad for p in roles[name].net.parameters() if p.grad is not None and bool(p.grad.any())]
            assert bool(given) == (name in trained), (role, name)
            roles[name].net.zero_grad(set_to_none=True)
        assert all(bool(torch.isfinite(v)) for v in logs.values())
    roles = nets(objective)  # equal scores: what moves the student comes through the fake score's features
    scattered(roles["disc"].net, 1)
    _, loss, logs = next(objective(roles, batch))
    loss.backward()
    assert (
        float(logs["score_gap"]) == 0 and max(float(p.grad.abs().max()) for p in roles["net"].net.parameters()) > 1e-6
    )


def test_a_student_in_other_terms_is_refused():
    objective = DMD2()
    roles = nets(objective)
    roles["net"] = Denoiser(roles["net"].net, Flow(), X0())
    with pytest.raises(UserError, match="one path only"):
        next(objective(roles, points()))


def test_the_validation_loss_is_a_distance_between_laws():
    x, y = torch.randn(400, 2), torch.randn(400, 2)
    assert abs(float(score.energy_distance(x, y))) < 0.03
    d = score.energy_distance(torch.zeros(5, 1), torch.full((7, 1), 3.0))
    assert float(d) == pytest.approx(6.0)


# -- fits --------------------------------------------------------------------------------------------------------------


class Points:
    """An exact world as the teacher of pictures of one pixel."""

    def __init__(self, inner):
        self.inner, self.path = inner, inner.path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        x0, eps = self.inner(x.flatten(1), t)
        return Prediction(x0.reshape(x.shape).to(x), eps.reshape(x.shape).to(x))


# On one or two numbers the error that DMD2 divides by comes close to 0, and its steps are anything.
FEW = {"scale": "kl", "times": Uniform(0.2, 0.95), "critic_steps": 4}


def fitted(objective, data, updates, lr=5e-3, n=128, width=48):
    """A student of the exact world of `data`; 2000 of its samples [2000, dim]."""
    spec = MLP(channels=data.dim, width=width, depth=2)
    teacher = Points(data.world(Flow()))
    items = data.open("train")
    x = torch.stack([items[i]["x"] for i in range(2000)])
    made = objective.roles(spec.build(), teacher)
    roles = {role: Denoiser(net, Flow(), Velocity()) for role, net in made.items()} | {"teacher": teacher}
    optims = {r: torch.optim.Adam(net.parameters(), lr) for r, net in made.items() if list(net.parameters())}
    average = torch.optim.swa_utils.AveragedModel(
        made["net"], multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.97)
    )
    average.module.spec = spec
    for step in range(updates):
        rows = torch.arange(step * n, (step + 1) * n) % len(x)
        batch = Batch(x[rows], {}, quick(step, n), step=step)
        kept = {}
        for role, loss, logs in objective(roles, batch):
            loss.backward()
            for one in (role,) if isinstance(role, str) else role:
                optims[one].step()
            for optim in optims.values():
                optim.zero_grad()
            kept |= logs
        if hasattr(objective, "observe"):
            objective.observe(roles, {key: value.item() for key, value in kept.items()})
        average.update_parameters(made["net"])
    f = Denoiser(average.module, Flow(), Velocity())
    many = Batch(torch.zeros(2000, *x.shape[1:]), {}, quick(-1, 2000))
    times = objective.grid.times(Flow(), objective.steps)
    return score.sample_student(f, many, many.noise, times).flatten(1), kept


def modes_hit(y, data, share=0.25):
    """How many modes get at least `share` of their due of samples within 3 deviations; the share of samples in any."""
    world = data.world(Flow())
    distance = torch.cdist(y.double(), world.means) / data.std
    near = distance.min(1)
    counts = torch.bincount(near.indices[near.values < 3], minlength=data.modes) / len(y)
    return int((counts >= share * world.weights).sum()), float(counts.sum())


@pytest.mark.slow
def test_a_student_of_two_dimensions_covers_the_modes():
    data = MixturePoints(dim=2, modes=4, std=0.2, radius=1.0)
    y, _ = fitted(DMD2(**FEW), data, 250)
    found, inside = modes_hit(y, data)
    assert found == 4 and inside > 0.65, (found, inside)


@pytest.mark.slow
def test_two_steps_on_its_own_walk():
    data = MixturePoints(dim=1, modes=2, std=0.2, radius=1.0)
    y, _ = fitted(DMD2(steps=2, **{**FEW, "times": Uniform(0.3, 0.95)}), data, 300)  # lower ones lose a mode
    found, inside = modes_hit(y, data)
    assert found == 2 and inside > 0.85, (found, inside)


def test_a_prediction_that_says_nothing_of_x0_at_the_start_is_refused(tmp_path):
    teacher = tiny(parameterisation=Eps(), sampler=Sampler("euler", steps=2, grid=Given((0.9, 0.5, 0.0))))
    with pytest.raises(UserError, match="does not determine x0 at t = 1"):
        train(DMD2().student(teacher, tmp_path, tmp_path), tmp_path / "student", quiet=True)
