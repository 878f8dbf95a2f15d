"""Consistency models: the boundary condition, exact maps on the line, curricula, targets, and a student that is one."""

import copy
import math

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.data.mixture import MixturePoints
from gen.diffusion import parameterisation
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.distillers.consistency import Consistency
from gen.distillers.lib.consistency import (
    check_boundary,
    consistency_fn,
    consistency_target,
    heun_step,
    sigma_of_t,
    t_of_sigma,
)
from gen.distillers.lib.networks import ema_update
from gen.samplers.grids.karras import Karras
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.renoise import Renoise
from gen.training.objectives import Batch
from tests.distill.toys import Exact, Quick, Table, batches, quantile_error, solve
from tests.gen.tiny import tiny

PATHS = [Flow(), EDM(), Trig(), VP()]
MEETS = [
    parameterisation.Velocity(),
    parameterisation.V(),
    parameterisation.Eps(),
    parameterisation.Score(),
    parameterisation.EDMPrecond(0.5),
]
F64 = torch.float64


def mixture(path, std=0.4):
    return MixturePoints(dim=1, modes=2, std=std, uneven=True).world(path)


class Wild(nn.Module):
    """Says anything."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        return 3 * x.sin() + 2


@pytest.mark.parametrize("path", [*PATHS, DDPM()], ids=repr)
@pytest.mark.parametrize("kind", MEETS, ids=repr)
def test_the_boundary_condition_is_the_parameterisations(path, kind):
    check_boundary(path, kind, "it")
    f, x = Denoiser(Wild(), path, kind), torch.randn(4, 3, dtype=F64)
    assert torch.equal(consistency_fn(f, x, torch.zeros(4, dtype=F64), {}), x)
    near = torch.full((4,), 1e-9 * path.t1, dtype=F64)
    assert float((consistency_fn(f, x, near, {}) - x).abs().max()) < 1e-3
    some = torch.tensor([0.0, 0.5, 0.0, 0.9], dtype=F64) * path.t1
    assert torch.equal(consistency_fn(f, x, some, {})[::2], x[::2])


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_network_that_says_x0_is_refused(path):
    with pytest.raises(UserError, match="X0 prediction does not ensure"):
        check_boundary(path, parameterisation.X0(), "it")
    f = Denoiser(Wild(), path, parameterisation.X0())
    batch = Batch(torch.zeros(2, 1, dtype=F64), {}, training_noise(0, 0, range(2)))
    with pytest.raises(UserError, match=r"f\(x, 0\) = x"):
        next(Consistency()({"net": f, "target": f, "teacher": mixture(path)}, batch))


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_levels_and_times_are_inverse(path):
    sigma = torch.tensor([0.0, 1e-3, 0.3, 2.0, 70.0], dtype=F64)
    torch.testing.assert_close(sigma_of_t(path, t_of_sigma(path, sigma)), sigma, rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", [Flow(), EDM()], ids=repr)
def test_a_step_of_every_sample_is_the_samplers_step(path):
    world, x = mixture(path), torch.randn(3, 1, dtype=F64)
    t, s = torch.tensor([[0.9, 0.5, 0.2], [0.6, 0.4, 0.0]], dtype=F64) * min(path.t1, 4.0)
    ours = heun_step(world, x, t, s, {})
    for i in range(3):
        alone = integrate(world, x[i : i + 1], [float(t[i]), float(s[i])], Heun())
        torch.testing.assert_close(ours[i : i + 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("path", "kind"), list(zip(PATHS, [*MEETS[:2], MEETS[4], MEETS[2]], strict=True)), ids=repr)
def test_distillation_loses_nothing_at_the_exact_map(path, kind):
    """But for Heun's error, whose square is far below."""
    world = mixture(path)
    f = Denoiser(Exact(world, kind), path, kind)
    batch = next(batches(world, 64, 1))
    method = Consistency(grid_steps=(1000, 1000), grid=Karras(0.01, 60.0), class_dropout=0)
    loss = next(method({"net": f, "target": f, "teacher": world}, batch))[1]
    assert 0 <= float(loss.detach()) < 1e-8
    wrong = Denoiser(Exact(mixture(path, std=0.3), kind), path, kind)
    assert float(next(method({"net": wrong, "target": f, "teacher": world}, batch))[1].detach()) > 1e-4


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_training_on_data_goes_nowhere_from_the_exact_map(path):
    """On Gaussian data the map is linear, so a batch of conditional means has the mean target. It is f(x_t, t), but for
    Euler's error: 16 times less in the square on a grid twice as fine."""
    world = Gaussian(path, torch.tensor([0.7], dtype=F64), torch.tensor([0.5], dtype=F64))
    kind = parameterisation.EDMPrecond(0.5)
    f = Denoiser(Exact(world, kind), path, kind)
    losses = []
    for n in (400, 800):
        method = Consistency(velocity="data", grid_steps=(n, n), grid=Karras(0.05, 20.0, rho=3.0), class_dropout=0)
        noise, i = Quick(16, 0), torch.full((16,), n // 2)
        t = method.grid.times(path, n)[i]
        pred = world(world.path.mix(world.sample(noise.normal("x0", (1,))), noise.normal("z", (1,)), t), t)
        noise.drawn["eps"] = pred.eps
        losses.append(float(method.losses({"net": f}, Batch(pred.x0, {}, noise), {}, n, i, f)[0].mean().detach()))
    assert losses[0] < 1e-6
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.1)


def test_the_map_of_a_gaussian_on_edms_path():
    m, s, t = 0.7, 0.5, torch.tensor([0.1, 1.0, 30.0], dtype=F64)
    world = Gaussian(EDM(), torch.tensor([m], dtype=F64), torch.tensor([s], dtype=F64))
    x = torch.tensor([[0.3], [-1.0], [25.0]], dtype=F64)
    f = Denoiser(Exact(world, parameterisation.EDMPrecond(0.5)), EDM(), parameterisation.EDMPrecond(0.5))
    told = m + s * (x - m) / (s**2 + t[:, None] ** 2).sqrt()
    torch.testing.assert_close(consistency_fn(f, x, t, {}).detach(), told, rtol=1e-9, atol=1e-9)


def test_the_number_of_nodes_and_the_targets_decay_are_the_papers():
    """Song et al. 2023, section 5 and appendix C: constant for distillation, CIFAR-10's schedule for training."""
    assert {Consistency().steps_at(k) for k in (0, 5_000, 10**9)} == {40}
    assert Consistency().decay_at(77) == pytest.approx(0.95)
    method = Consistency(velocity="data", grid_steps=(2, 150), ema_decay=0.9, growth_updates=800_000)
    assert [method.steps_at(k) for k in (0, 400_000, 800_000, 10**9)] == [2, 107, 151, 151]
    assert method.decay_at(0) == pytest.approx(0.9)
    for k in (0, 1234, 800_000):
        assert method.decay_at(k) == pytest.approx(math.exp(2 * math.log(0.9) / method.steps_at(k)))
    counts = [method.steps_at(k) for k in range(0, 800_001, 1000)]
    assert counts == sorted(counts)


class Dropped(nn.Module):
    """A network whose dropout shows, and that remembers what it dropped."""

    def __init__(self):
        super().__init__()
        self.weight, self.masks = nn.Parameter(torch.ones((), dtype=F64)), []

    def forward(self, x, t, cond, *, s=None, tap=None):
        self.masks.append(nn.functional.dropout(torch.ones_like(x), 0.5, self.training))
        return self.weight * x * self.masks[-1]


def test_both_points_have_one_dropout_and_the_next_step_another():
    net = Dropped()
    f, world = Denoiser(net, Flow(), parameterisation.Velocity()), mixture(Flow())
    method = Consistency(velocity="data", class_dropout=0)
    for batch in batches(world, 64, 2):
        next(method({"net": f, "target": f}, batch))[1].backward()
    first, second, third, fourth = net.masks
    assert torch.equal(first, second) and torch.equal(third, fourth)
    assert not torch.equal(first, third)


def test_no_gradient_reaches_teacher_or_target():
    world = mixture(Flow())
    nets = {name: nn.Linear(1, 1).double() for name in ("net", "target", "teacher")}

    class Call(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t, cond, *, s=None, tap=None):
            return self.inner(x)

    roles = {name: Denoiser(Call(net), Flow(), parameterisation.Velocity()) for name, net in nets.items()}
    next(Consistency(class_dropout=0)(roles, next(batches(world, 16, 1))))[1].backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in nets["net"].parameters())
    assert all(p.grad is None for name in ("target", "teacher") for p in nets[name].parameters())
    goal = consistency_target(roles["net"], torch.ones(2, 1, dtype=F64), torch.ones(2, dtype=F64), {})
    assert not goal.requires_grad


def test_the_target_is_the_average_of_the_students():
    ours, theirs = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * theirs.weight.detach() + 0.1 * ours.weight.detach()
    ema_update(theirs, ours, 0.9)
    torch.testing.assert_close(theirs.weight.detach(), expected)


def test_a_teacher_is_needed_and_on_the_same_path():
    net = tiny().model.build()
    with pytest.raises(UserError, match="needs a teacher"):
        Consistency().roles(net, None)
    f = Denoiser(Wild(), Flow(), parameterisation.Velocity())
    with pytest.raises(UserError, match="same path"):
        next(Consistency()({"net": f, "target": f, "teacher": mixture(EDM())}, next(batches(mixture(Flow()), 4, 1))))


def test_two_steps_of_the_exact_map_sample_the_data():
    """Noise put back between two exact jumps leaves the distribution as it is."""
    path = Flow()
    world = mixture(path)
    f = Denoiser(Exact(world, parameterisation.Velocity()), path, parameterisation.Velocity())
    z = torch.special.ndtri((torch.arange(4000, dtype=F64) + 0.5) / 4000)[:, None]
    with torch.no_grad():
        x = integrate(f, z, [1.0, 0.5, 0.0], Renoise(), noise=Quick(4000, 3))
    share = world.cdf(x, torch.zeros(1, dtype=F64)).flatten().sort().values
    gap = (share - (torch.arange(4000, dtype=F64) + 0.5) / 4000).abs().max()
    assert float(gap) < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at one in a hundred


def test_the_sampler_is_at_times_that_were_trained():
    method = Consistency(grid_steps=(40, 40))
    trained = method.grid.times(Flow(), 40)
    for steps in (1, 2, 4):
        times = method.sampler.grid.times(Flow(), steps)
        assert len(times) == steps + 1 and set(times.tolist()) <= set(trained.tolist())
    with pytest.raises(UserError, match="more than the 40"):
        method.sampler.grid.times(Flow(), 41)


@pytest.mark.slow
def test_the_student_is_the_quantile_map():
    path, kind, grid = EDM(20.0), parameterisation.EDMPrecond(1.0), Karras(0.02, 20.0)
    world, times = mixture(path), grid.times(path, 40)[:-1]
    f = Denoiser(Table(path, kind, times, begin=world), path, kind)
    assert quantile_error(f, world, 20.0) > 0.5  # the denoiser says the mean of all data
    method = Consistency(grid_steps=(40, 40), grid=grid, ema_decay=0.0, class_dropout=0)
    roles = {"net": f, "target": Denoiser(copy.deepcopy(f.net), path, kind), "teacher": world}
    solve(method, roles, 40)
    assert quantile_error(f, world, 20.0) < 1e-2
    assert quantile_error(f, world, float(times[20])) < 1e-2


SMALL = {"steps": 4, "objective.grid_steps": [4, 4], "objective.grid.sigma_min": 0.05}
