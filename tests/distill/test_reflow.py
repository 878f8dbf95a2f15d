"""Reflow: on a Gaussian one round makes the paths straight and one step exact; the pair store regenerates its noise."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gen
from gen.config.errors import UserError
from gen.data.lib.shards import ShardPlan
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds, training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Times
from gen.diffusion.worlds import Gaussian
from gen.distillers.reflow import Reflow
from gen.pipeline import Pipeline
from gen.samplers.solvers.euler import Euler
from gen.training.objectives import Batch
from gen.training.pair_store import make_pairs
from gen.training.run import Sampler
from tests.distill.line import world
from tests.distill.tables import Curve, end_of, mixture_pairs, off, solve, spread
from tests.distill.tables import Knots as EvenKnots
from tests.gen.tiny import tiny
from tests.ode import straightness

KNOTS = 16
MEAN, STD = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.6, 0.3, 1.5]).double()


class Knots(Times):
    """The times of a grid, equally often."""

    def at(self, u, path):
        return (u * KNOTS).floor().add(1) / KNOTS * path.t1


class Affine(nn.Module):
    """One affine map of each dimension for each time of the grid: enough to be exact on a Gaussian."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(KNOTS + 1, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(KNOTS + 1, 3, dtype=torch.float64))

    def forward(self, x, t, cond, *, s=None, tap=None):
        k = (t * KNOTS).round().long()
        return self.weight[k] * x + self.bias[k]


QUIET = ShardPlan(quiet=True)


def pairs(n, seed=0):
    origin = Noise(tuple(sample_seeds(seed, n)))
    x = MEAN + STD * origin.normal("start", (3,)).double()
    return Batch(x, {}, training_noise(0, 0, range(n)), origin)


@pytest.fixture(scope="module")
def student():
    f = Denoiser(Affine(), Flow(), Velocity())
    reflow, batch = Reflow(times=Knots(), huber=1.0), pairs(1024)
    optim = torch.optim.LBFGS(f.net.parameters(), max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optim.zero_grad()
        value = next(reflow({"net": f}, batch))[1]
        value.backward()
        return value

    optim.step(loss)
    return f


@torch.no_grad()
def test_one_round_makes_gaussian_paths_straight(student):
    world, z = Gaussian(Flow(), MEAN, STD), torch.randn(500, 3, dtype=torch.float64)
    before, after = straightness(world, z, KNOTS), straightness(student, z, KNOTS)
    assert before > 0.1
    assert after < 1e-3 * before


@torch.no_grad()
def test_one_step_of_the_student_is_the_exact_map(student):
    world, z = Gaussian(Flow(), MEAN, STD), torch.randn(500, 3, dtype=torch.float64)
    one = integrate(student, z, [1.0, 0.0], Euler())
    assert (one - world.sample(z)).abs().max() < 1e-4
    bare = integrate(world, z, [1.0, 0.0], Euler())  # one step of the teacher is the mean of all data
    assert (bare - MEAN).abs().max() < 1e-12


def test_the_loss_vanishes_at_the_exact_velocity():
    class Exact(nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            t = t[:, None]
            z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
            return z - (MEAN + STD * z)

    f = Denoiser(Exact(), Flow(), Velocity())
    assert float(next(Reflow()({"net": f}, pairs(64)))[1]) < 1e-12


@pytest.mark.parametrize("huber", [1e-9, 1e6])
def test_pseudo_huber_lies_between_norm_and_square(huber):
    class Zero(nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return torch.zeros_like(x)

    f, batch = Denoiser(Zero(), Flow(), Velocity()), pairs(16)
    losses = Reflow(huber=huber).losses(f, batch, torch.full((16,), 0.5, dtype=torch.float64))
    square = ((batch.origin.normal("start", (3,)) - batch.x) ** 2).sum(1)
    limit = square.sqrt() / 3 if huber < 1 else square / (2 * huber * 3 * 3)
    assert torch.allclose(losses, limit, rtol=1e-3)


def gaussian_pipeline():
    return Pipeline(Gaussian(Flow(), MEAN.float(), STD.float()), (3,), name="gaussian")


def test_pairs_regenerate_their_noise(tmp_path):
    data = make_pairs(gaussian_pipeline(), tmp_path / "pairs", 40, Sampler("jump", steps=1), plan=QUIET)
    for split, n in (("train", 38), ("test", 2)):
        opened = data.open(split)
        assert len(opened) == n
        items = torch.utils.data.default_collate(list(opened))
        z = Noise(tuple(items["origin"].tolist())).normal("start", (3,))
        assert torch.allclose(items["x"], MEAN.float() + STD.float() * z, atol=1e-6)


def test_pairs_are_kept_and_other_pairs_refused(tmp_path):
    make_pairs(gaussian_pipeline(), tmp_path, 40, Sampler("jump", steps=1), plan=QUIET)
    stamp = (tmp_path / "shard-00000" / "manifest.json").stat().st_mtime_ns
    make_pairs(gaussian_pipeline(), tmp_path, 40, Sampler("jump", steps=1), plan=QUIET)
    assert (tmp_path / "shard-00000" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="another store: sampler differ"):
        make_pairs(gaussian_pipeline(), tmp_path, 40, Sampler("euler", steps=2), plan=QUIET)
    with pytest.raises(UserError, match="n differ"):
        make_pairs(gaussian_pipeline(), tmp_path, 41, Sampler("jump", steps=1), plan=QUIET)


@pytest.mark.parametrize("premetric_over_t", [False, True])
def test_a_premetric_joins_as_in_configurations_e_and_f(premetric_over_t):
    """(1 - t) Huber + m(x0(x_t), x), m divided by t in the latter."""

    @dataclass(frozen=True)
    class First:
        def __call__(self, ours, theirs):
            return (ours - theirs)[:, 0].abs()

    f, batch, t = Denoiser(Affine(), Flow(), Velocity()), pairs(8), torch.linspace(0.1, 1, 8, dtype=torch.float64)
    both = Reflow(premetric=First(), premetric_over_t=premetric_over_t, huber=0.5)
    away = (batch.origin.normal("start", (3,)) * t[:, None] + (1 - t[:, None]) * batch.x - batch.x)[:, 0].abs()
    expected = (1 - t) * Reflow(huber=0.5).losses(f, batch, t) + (away / t if premetric_over_t else away)
    assert torch.allclose(both.losses(f, batch, t), expected, rtol=1e-6)
    _, loss, logs = next(both({"net": f}, batch))
    assert torch.allclose(logs["huber"] + logs["premetric"], loss)
    with pytest.raises(UserError, match="there is no premetric: give one"):
        Reflow(premetric_over_t=True)


def test_a_student_of_a_mixture_is_its_quantile_map_and_straight():
    mixture, z = world(), spread()
    f = Denoiser(Curve(8), Flow(), Velocity())
    solve(Reflow(times=EvenKnots(8), huber=1e3), {"net": f}, mixture_pairs(mixture, 4000), 80)
    with torch.no_grad():
        for steps in (1, 8):
            assert off(integrate(f, z, torch.linspace(1, 0, steps + 1).double(), Euler()), end_of(mixture, z)) < 1e-2
        assert straightness(f, z, 8) < 1e-3 * straightness(mixture, z, 8)


def test_data_without_pairs_are_refused():
    f = Denoiser(Affine(), Flow(), Velocity())
    batch = Batch(torch.zeros(2, 3).double(), {}, training_noise(0, 0, range(2)))
    with pytest.raises(UserError, match="needs pairs"):
        next(Reflow()({"net": f}, batch))


def test_a_longer_run_goes_on_with_the_same_pairs(teacher, tmp_path):
    changes = {"objective.pairs": 32, "objective.teacher_sampler.steps": 2, "objective.times": "point"}
    for steps in (1, 2):
        done = gen.distill("reflow", teacher, tmp_path, changes={**changes, "steps": steps}, quiet=True)
        assert done.step == steps and len(list((tmp_path / "pairs").iterdir())) == 1


def test_a_teacher_of_more_than_images_is_refused_before_pairs_are_made(tmp_path):
    run = tiny(model={"name": "reg", "preset": "digits"}, objective="reg")
    with pytest.raises(UserError, match="Reflow trains on images alone"):
        Reflow().student(run, tmp_path / "teacher", tmp_path / "student")
    assert not (tmp_path / "student").exists()
