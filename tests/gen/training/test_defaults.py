"""Defaults follow the choice they depend on: a run that only says the path, the data or the model is a good run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, find, names, override, spec_of
from gen.data.digits import Digits
from gen.diffusion.parameterisation import EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Karras as KarrasTimes
from gen.diffusion.times import Levels, LogitNormal, LogNormal, Natural
from gen.diffusion.worlds import Mixture
from gen.models.dit import DiT
from gen.samplers.grids.karras import Karras
from gen.samplers.grids.linear import Linear
from gen.training.recipes.digits import digits
from gen.training.recipes.lists import lists
from gen.training.run import Run, run_from, run_spec
from gen.training.trainer import train

PATHS = [
    *(name for name in names("diffusion.path") if name not in ("table", "staged")),  # which have no defaults
    {"name": "ddpm", "schedule": "cosine"},
    {"name": "ddpm", "schedule": "scaled_linear"},
    {"name": "edm", "sigma_max": 10.0},
]
OTHERS = ("text", "ddit", "given", "pipeline")  # families that are not of pictures, or that need a path


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_defaults_follow_the_path_to_a_well_conditioned_loss(path):
    """Inputs and targets of unit scale at all training times, no blow-up where sampling starts, waves of 0 .. 999."""
    run = override(digits(), {"path": path})
    path, param, generator = run.path, run.parameterisation, torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4096, 1, generator=generator, dtype=torch.float64)
    for t in run.objective.times.fixed(path, 64):
        target = param.target(path, 0.5 * x0, eps, t.expand(4096)).std()
        shown = (param.scale(path, t) * path.mix(0.5 * x0, eps, t)).std()
        assert 0.4 < float(target) < 1.6 and 0.4 < float(shown) < 1.1, float(t)
    first = run.sampler.grid.times(path, 18)[0]
    assert float((path.sigma(first) / param.det(path, first)).abs()) <= 1.1  # error of x0 from one of the output
    scaled = run.model.time_scale * path.t_to_network(run.objective.times.fixed(path, 64))
    assert 500 < float(scaled.max() - scaled.min()) < 2000


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_defaults_follow_the_path_to_a_grid_near_the_best(path):
    """On a mixture whose denoiser is exact, by the recipe's solver and by that of a new run."""
    run = override(digits(), {"path": path})
    means = torch.tensor([[-0.8, 0.2], [0.6, 0.5], [0.1, -0.7]], dtype=torch.float64)
    stds, weights = torch.tensor([[0.05, 0.1, 0.2], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    world = Mixture(run.path, means, stds, weights, torch.arange(3))
    unit = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ends(grid, steps, solver):
        times = build("samplers.grids", grid).times(run.path, steps)
        return integrate(world, run.path.start(unit, times[0]), times, build("samplers.solvers", solver))

    exact = ends("exponential", 150, "heun")
    for solver, steps in (("euler", 20), ("heun", 18)):
        errors = {
            grid: float((ends(grid, steps, solver) - exact).square().mean().sqrt())
            for grid in ("linear", "karras", "exponential", "shift")
        }
        own = float((ends(run.sampler.grid, steps, solver) - exact).square().mean().sqrt())
        assert own <= 2.2 * min(errors.values()), (solver, own, errors)


def test_defaults_follow_the_path_unless_stated():
    edm = override(digits(), {"path": "edm"})
    assert (edm.parameterisation, edm.objective.times) == (EDMPrecond(), LogNormal())
    assert (edm.sampler.grid, edm.sampler.steps, edm.model) == (Karras(), 20, digits().model)
    assert override(edm, {"path": {"name": "edm", "sigma_max": 10}}).objective == edm.objective  # the same kind of path
    stated = {"path": "edm", "parameterisation": "eps", "sampler.grid": "linear", "objective.times": "uniform"}
    for keys in (list(stated), list(stated)[::-1]):
        run = override(digits(), {key: stated[key] for key in keys})
        assert (run.parameterisation, run.sampler.grid) == (Eps(), Linear())
        assert spec_of(run.objective.times)["name"] == "uniform"
    deeper = {
        "path": "edm",
        "parameterisation.sigma_data": "1",
        "objective.times.mean": "-0.8",
        "sampler.grid.rho": "5",
    }
    run = override(digits(), deeper)  # keys of what the path brings
    assert (run.parameterisation, run.objective.times) == (EDMPrecond(1.0), LogNormal(mean=-0.8))
    assert run.sampler.grid == Karras(rho=5.0)
    back = override(edm, {"path": "flow"})
    assert (back.parameterisation, back.sampler.grid) == (Velocity(), Linear())
    assert override(digits(), {"path": "flow"}) == digits()
    assert digits().objective.times == LogitNormal()
    assert Run(model=DiT(), path="edm").parameterisation == EDMPrecond()
    assert override(digits(), {"path": "edm", "objective": "denoise"}).objective.times == LogNormal()
    assert lists().parameterisation is None
    assert run_from(run_spec(edm), None) == edm


def test_defaults_follow_a_table_to_the_factor_on_time():
    """A table's times are 0 .. 999 for the network, which the waves of 0 .. 999 take as they are."""
    ddpm = override(digits(), {"path": "ddpm"})
    assert (ddpm.parameterisation, ddpm.model.time_scale) == (V(), 1.0)
    assert override(ddpm, {"path.steps": "100"}).model.time_scale == 10.0
    assert override(ddpm, {"path": "edm"}).model.time_scale == 1000.0
    assert override(digits(), {"path": "ddpm", "model.time_scale": "7"}).model.time_scale == 7.0
    assert override(digits(), {"path": "ddpm", "model": "edm2"}).model.bandwidth == 1e-3


@pytest.mark.parametrize(
    "name", [name for name in names("models") if name not in OTHERS and not hasattr(find(name, "models"), "shape")]
)
def test_defaults_follow_the_data_and_the_path_in_every_model(name):
    """A family by its name alone, or by a preset, takes the data of the recipe; the time moves what it embeds."""
    fitted = override(digits(), {"model": name}).model
    assert (fitted.size, fitted.channels, fitted.classes) == (8, 1, 10)
    inner = getattr(fitted, "inner", fitted)
    if type(inner) in (DiT, *(build("models", known).__class__ for known in ("unet", "ssm", "lightnet", "mlp"))):
        assert inner.time_scale == 1000.0
    for preset in list(type(fitted).presets)[:1]:
        other = override(digits(), {"model": name, "model.preset": preset}).model
        assert (other.size, other.channels, other.classes) == (8, 1, 10)


def test_defaults_follow_the_data():
    @dataclasses.dataclass(frozen=True)
    class Pictures(Digits):
        shape: tuple = (3, 32, 32)
        classes: int = 2

    run = dataclasses.replace(digits(), data=digits().data)
    changed = override(run, {"data": Pictures()})
    assert changed.model == dataclasses.replace(run.model, size=32, channels=3, classes=2)
    assert override(run, {"data": Pictures(), "model.classes": "5"}).model.classes == 5
    assert override(run, {"data": Pictures(), "model": "unet"}).model.channels == 3
    assert override(run, {"model": "dit", "model.size": "16", "model.width": "64", "model.heads": "4"}).model == DiT(
        size=16, channels=1, classes=10, width=64, heads=4, time_scale=1000.0
    )
    assert Run(model="dit", data="digits").model == DiT(size=8, channels=1, classes=10, time_scale=1000.0)
    assert run_from({"model": {"name": "dit", "width": 96}, "data": {"name": "digits"}}, None).model.size == 8
    with pytest.raises(UserError, match=r"DiT\.size 1 must be divisible by patch, 2"):
        override(run, {"data": "mixture"})


def test_natural_densities_are_those_of_the_path():
    u = torch.rand(9, dtype=torch.float64)
    assert torch.equal(Natural().at(u, EDM()), LogNormal().at(u, EDM()))
    assert torch.equal(Levels(0.02, 0.98).at(u, EDM()), KarrasTimes(0.02, 0.98).at(u, EDM()))
    assert torch.equal(Levels(0.02, 0.98).at(u, Flow()), 0.02 + 0.96 * u)
    assert torch.equal(Natural().at(u, DDPM()), 1 + (u * 1000).floor())


@pytest.mark.slow
@pytest.mark.parametrize("path", ["ddpm", "edm", "flow"])
def test_a_run_that_only_says_the_path_learns_digits(tmp_path, path):
    """At chance, labels are right one time in ten; vp is what ddpm is a table of, and gvp and trig are one path."""
    from gen.eval.evaluate import evaluate

    run = override(digits(), {"path": path, "steps": 800})
    record = evaluate(train(run, tmp_path / "run", quiet=True).pipeline(), n=500, seconds=0.1)
    assert record.estimate("accuracy").value > 0.75
    assert record.estimate("fid").value < 6 and math.isfinite(record.estimate("fid").value)
