"""Sampling as a user does it: a sample is a function of its seed, evaluations are counted, wrong wishes are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.noise import sample_seeds
from gen.diffusion.path import EDM, Flow
from gen.diffusion.worlds import Gaussian, Mixture
from gen.pipeline import Pipeline, load
from gen.samplers.solvers.heun import Heun
from gen.training.run import Sampler
from gen.training.trainer import train
from tests.gen.tiny import tiny


def mixture(path=None):
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    world = Mixture(path or Flow(), means, torch.full((3,), 0.3), torch.full((3,), 1 / 3), torch.arange(3))
    return Pipeline(world, (2,), classes=3, sampler=Sampler("heun", steps=8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(), folder, quiet=True)
    return folder


def test_samples_do_not_depend_on_batch_size_or_start():
    pipeline = mixture()
    whole = pipeline.sample(10, seed=3).x
    assert torch.allclose(pipeline.sample(10, seed=3, batch_size=3).x, whole, atol=1e-6)
    assert torch.allclose(pipeline.sample(4, seed=3, start=6).x, whole[6:], atol=1e-6)
    assert torch.allclose(pipeline.sample(10, seed=sample_seeds(3, 10)).x, whole, atol=1e-6)
    assert not torch.allclose(pipeline.sample(10, seed=4).x, whole, atol=1e-2)


def test_each_label_gives_its_own_component():
    made = mixture().sample(60, steps=20)
    assert made.cond["y"].tolist() == [i % 3 for i in range(60)]
    assert (torch.cdist(made.x, mixture().denoiser.means).argmin(1) == made.cond["y"]).all()
    assert (mixture().sample(5, 2, steps=20).x[:, 1] < 0).all()


@pytest.mark.parametrize(
    ("options", "nfe"),
    [
        ({}, 15),
        ({"solver": "euler", "steps": 5}, 5),
        ({"solver": "euler", "steps": 5, "guide": {"name": "cfg", "scale": 2.0}}, 10),
        ({"solver": "euler", "steps": 5, "guide": {"name": "cfg", "scale": 1.0}}, 5),
        # grid 1, .8, .6, .4, .2 -> sigma / alpha inf, 4, 1.5, .67, .25: two of them guided
        ({"solver": "euler", "steps": 5, "guide": {"name": "cfg", "scale": 2.0, "interval": [0.5, 2.0]}}, 7),
    ],
)
def test_evaluations_are_counted(options, nfe):
    assert mixture().sample(6, batch_size=4, **options).nfe == nfe


def test_an_edm_pipeline_samples_the_same_world():
    world = Gaussian(EDM(), torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.2]))
    made = Pipeline(world, (2,), sampler=Sampler("heun", 64, "karras")).sample(4000)
    assert torch.allclose(made.x.mean(0), world.mean, atol=0.03)
    assert torch.allclose(made.x.std(0), world.std, atol=0.02)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (3, "allowed: 4 of 0 .. 2"),
        ([0, 1], "for 4 samples"),
        ({"y": torch.zeros(3, dtype=torch.long)}, "3 rows for 4 samples"),
    ],
)
def test_wrong_conditions_are_refused(cond, message):
    with pytest.raises(UserError, match=message):
        mixture().sample(4, cond)


def test_wrong_wishes_are_refused():
    with pytest.raises(UserError, match="n = 0"):
        mixture().sample(0)
    with pytest.raises(UserError, match="2 seeds for samples 0 to 2"):
        mixture().sample(3, seed=[1, 2])
    with pytest.raises(UserError, match="unconditional"):
        Pipeline(Gaussian(Flow(), torch.zeros(2), torch.ones(2)), (2,)).sample(1, 3)


def test_a_trained_run_is_loaded_whole(run):
    pipeline = gen.load(run)
    assert pipeline.params == sum(p.numel() for p in tiny().model.build().parameters())
    assert (pipeline.name, pipeline.shape, pipeline.classes) == ("tiny", (1, 8, 8), 10)
    made = pipeline.sample(4)
    assert made.nfe == 2 and [i.size for i in made.images] == [(8, 8)] * 4
    assert torch.equal(gen.load(run / "checkpoints/step-0000006").sample(4).x, made.x)
    assert not torch.equal(load(run, "raw").sample(4).x, made.x)


@pytest.mark.parametrize(
    "seeds", [np.array([0, 1]), torch.tensor([0, 1]), [np.int64(0), 1]], ids=["numpy", "torch", "mixed"]
)
def test_a_whole_number_is_one_seed_in_every_guise(seeds):
    assert torch.equal(mixture().sample(2, seed=seeds).x, mixture().sample(2, seed=[0, 1]).x)
    assert torch.equal(mixture().sample(2, seed=np.int64(5)).x, mixture().sample(2, seed=5).x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "a seed is a whole number of at most 64 bits, got 1.5"),
        ({"seed": [0, True]}, "got True"),
        ({"seed": None}, "got None"),
        ({"seed": "ab"}, "got 'a'"),
        ({"start": -1}, "start = -1"),
        ({"steps": 8.5}, "steps: got 8.5, expected a whole number"),
        ({"steps": True}, "steps: got True, expected a whole number"),
        ({"solver": ["heun", "euler"]}, r"solver: got \['heun', 'euler'\], expected a name or a spec"),
        (
            {"solver": 5},
            "solver: got 5, expected a name or a spec of .* or an object with step",
        ),
        ({"solver": Heun}, "solver: got the class Heun, no object of it"),
        ({"guide": 1.5}, "guide: got 1.5"),
        ({"cond": {"y": torch.tensor([7, 7])}}, r"allowed: 0 \.\. 3"),
        ({"cond": "ab"}, "labels"),
    ],
)
def test_near_misses_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        mixture().sample(2, **options)


def test_times_may_be_given_as_they_are():
    given = mixture().sample(3, solver="euler", steps=2, grid=[1.0, 0.5, 0.0]).x
    assert torch.equal(given, mixture().sample(3, solver="euler", steps=2, grid="linear").x)


def test_a_default_guide_and_cache_can_be_left_out():
    plain = mixture()
    guided = replace(plain, sampler=replace(plain.sampler, guide={"name": "cfg", "scale": 3.0}))
    assert guided.sample(2).nfe == 30
    assert guided.sample(2, guide="none", cache="none").nfe == 15
