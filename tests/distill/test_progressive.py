"""Progressive distillation: one step of the student is two of its teacher, stage by stage, in one run."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0, Eps, V, Velocity
from gen.diffusion.path import EDM, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.distillers.lib.trajectory import euler_chord
from gen.distillers.progressive import Progressive, StageTeacher
from gen.samplers.solvers.euler import Euler
from gen.training.objectives import Batch
from tests.distill.line import world
from tests.distill.tables import Affine, Curve, Wide, end_of, gaussian, off, solve, spread


def linear(path, steps):
    return torch.linspace(path.t1, 0, steps + 1, dtype=torch.float64)


def points(n, path=None, step=0):
    noise = training_noise(0, 0, range(n))
    x = gaussian(path).sample(noise.normal("data", (3,)).double())
    return Batch(x, {}, noise, None, step)


def staged(method, net, path, param, make, steps=200):
    """The student after every stage, each solved for on one batch, as the trainer would go through them."""
    roles = {role: Denoiser(made, path, param) for role, made in method.roles(net, None).items()}
    roles["teacher"] = make(0).teacher
    for stage in range(method.stages):
        solve(method, roles, make(stage * method.stage_updates).batch, steps)
        for _ in range(method.stage_updates):
            method.observe(roles, {})
    return roles["net"]


class Made:
    def __init__(self, teacher, batch):
        self.teacher, self.batch = teacher, batch


@pytest.mark.parametrize(("path", "param"), [(Flow(), Velocity()), (Trig(), V())], ids=["flow", "trig"])
def test_one_step_of_the_student_is_two_of_the_teacher(path, param):
    """Exactly, where the teacher is linear and the student can be: a Gaussian; over two stages, four."""
    method, knots = Progressive(start_steps=4, end_steps=2, stage_updates=2), 8
    net = Affine(knots, path.t1)
    f = staged(method, net, path, param, lambda step: Made(gaussian(path), points(120, path, step)))
    z = torch.randn(20, 3, dtype=torch.float64)
    four = integrate(gaussian(path), z, linear(path, 8), Euler())  # teacher steps for each of the student's
    assert off(integrate(f, z, linear(path, 2), Euler()), four) < 1e-5


@pytest.mark.parametrize("param", [Velocity(), X0(), Eps(), V()], ids=repr)
@pytest.mark.parametrize("path", [Trig(), EDM(8.0)], ids=repr)
def test_the_target_leads_where_the_teacher_s_two_steps_lead(path, param):
    n, times = 30, linear(path, 8)
    x = path.mix(gaussian(path).sample(torch.randn(n, 3).double()), torch.randn(n, 3).double(), times[2])
    rows = [times[k].expand(n) for k in (2, 3, 4)]
    goal = euler_chord(gaussian(path), x, rows, {})
    two = integrate(gaussian(path), x, times[2:5], Euler())
    assert torch.allclose(path.interpolate(goal, times[4]), two, atol=1e-12)
    assert torch.allclose(path.mix(*goal, rows[0]), x, atol=1e-12)
    out = param.target(path, *goal, rows[0])
    solved = param.solve(path, x, out, rows[0])
    assert torch.allclose(solved.x0, goal.x0, atol=1e-9) and torch.allclose(solved.eps, goal.eps, atol=1e-9)


def test_the_loss_vanishes_where_a_step_is_the_teacher_s_two():
    class Two(nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return Velocity().target(Flow(), *euler_chord(gaussian(), x, [t, t - 1 / 8, t - 2 / 8], {}), t)

    f = Denoiser(Two(), Flow(), Velocity())
    roles = {"net": f, "teacher": gaussian(), "stage_teacher": None}
    assert float(Progressive(start_steps=4).losses(roles, points(40)).max()) < 1e-20


@dataclass(eq=False)
class Remembered:
    """A teacher that is asked the same by every evaluation of the loss."""

    inner: object
    path = property(lambda self: self.inner.path)

    def __post_init__(self):
        self.known = {}

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        key = float(x.sum()), float(t.sum())
        if key not in self.known:
            self.known[key] = self.inner(x, t)
        return self.known[key]


def test_a_one_step_student_of_a_mixture_is_its_quantile_map():
    """4 student steps from 256 of the exact teacher's, then 2, then 1, within 1 % of the quantile map."""
    mixture, method = world(), Progressive(start_steps=4, end_steps=1, stage_updates=1, first_stride=64)

    def make(step):
        noise = Wide(step, 4000)
        return Made(Remembered(mixture), Batch(noise.normal("data", (1,)) / 2, {}, noise, None, step))

    f = staged(method, Curve(4), Flow(), Velocity(), make, 60)
    z = spread()
    assert off(integrate(f, z, [1.0, 0.0], Euler()), end_of(mixture, z)) < 1e-2
    assert off(integrate(mixture, z, [1.0, 0.0], Euler()), end_of(mixture, z)) > 0.3


def test_no_gradient_reaches_the_teachers():
    teacher = Denoiser(Affine(8), Flow(), Velocity())
    roles = {"net": Denoiser(Affine(8), Flow(), Velocity()), "teacher": teacher}
    method = Progressive(start_steps=4, stage_updates=5)
    roles["stage_teacher"] = Denoiser(method.roles(roles["net"].net, None)["stage_teacher"], Flow(), Velocity())
    for step in (0, 5):
        next(method(roles, points(8, step=step)))[1].backward()
    assert all(p.grad is None for p in [*teacher.net.parameters(), *roles["stage_teacher"].net.parameters()])
    assert any(p.grad is not None for p in roles["net"].net.parameters())


def test_stages_halve_and_the_last_goes_on():
    method = Progressive(start_steps=8, end_steps=2, stage_updates=10, last_stage_updates=30)
    assert (method.stages, method.total_updates) == (3, 50)
    assert [method.stage(n) for n in (0, 9, 10, 19, 20, 49, 500)] == [0, 0, 1, 1, 2, 2, 2]
    net = Affine(16)
    roles = {role: Denoiser(made, Flow(), Velocity()) for role, made in method.roles(net, None).items()}
    stage_teacher, marks = roles["stage_teacher"].net, []
    assert isinstance(stage_teacher, StageTeacher) and not stage_teacher.train().inner.training
    for n in range(1, 51):
        with torch.no_grad():
            net.bias.fill_(float(n))
        method.observe(roles, {})
        marks.append(float(stage_teacher.inner.bias[0, 0]))
    assert marks[9] == 10 and marks[18] == 10 and marks[19] == 20 and marks[-1] == 20  # never the last stage's own
