"""The laws that every plug-in obeys, over every file that the folders hold: a new file is tested without a new test.

A plug-in is built with its defaults, which therefore must work. What only one plug-in does is tested beside its folder.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from gen.cli.list import FOLDERS
from gen.denoise import Counted, Denoiser
from gen.noise import Noise, sample_seeds
from gen.param import V
from gen.path import DDPM, EDM, Flow, Trig
from gen.sample import integrate
from gen.spec import build, describe, find, name_of, names, spec_of
from gen.testing import Gaussian, Mixture, measured_order


def every(folder):
    """Each plug-in of a folder, built with its defaults."""
    return [pytest.param(build(folder, name), id=name) for name in names(folder)]


def needs_fields(thing):
    """Whether it has no defaults to be built with, as a data set that needs a file."""
    missing = dataclasses.MISSING
    return any(f.init and f.default is missing and f.default_factory is missing for f in dataclasses.fields(thing))


PATHS = [*every("path"), *(pytest.param(DDPM(kind), id=f"ddpm-{kind}") for kind in ("cosine", "scaled_linear"))]
SOLVERS, GRIDS = every("samplers.solvers"), every("samplers.grids")
GUIDES = names("samplers.guides")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(path):
    """Three Gaussians, the last two of one class."""
    means = f64([2, 0], [-1, 1.5], [-1, -1.5])
    return Mixture(path, means, f64(0.3, 0.2, 0.4), f64(0.5, 0.2, 0.3), torch.tensor([0, 1, 1]))


def begin(path, n=5):
    """A grid's start: x, times, labels and noise of n samples."""
    noise = Noise(tuple(sample_seeds(0, n)))
    grid = torch.linspace(path.t1, 0, 7, dtype=torch.float64)
    return path.start(noise.normal("start", (2,)).double(), grid[0]), grid, {"y": noise.integers("y", 2)}, noise


# Specs


BUILT_BY_DEFAULT = [
    pytest.param(folder, name, id=f"{folder}/{name}")
    for folder in FOLDERS
    for name in names(folder)
    if dataclasses.is_dataclass(find(name, folder)) and not needs_fields(find(name, folder))
]


@pytest.mark.parametrize(("folder", "name"), BUILT_BY_DEFAULT)
def test_a_spec_builds_an_equal_thing(folder, name):
    thing = build(folder, name)
    spec = json.loads(json.dumps(spec_of(thing)))
    assert spec["name"] == name == name_of(type(thing))
    assert build(folder, spec) == thing
    with pytest.raises(dataclasses.FrozenInstanceError):
        thing.name = "something else"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_is_described_in_a_sentence(folder):
    for name in names(folder):
        line = describe(find(name, folder))
        assert len(line) >= 10, f"{folder}/{name} has no docstring"
        assert not line.startswith(f"{find(name, folder).__name__}("), f"{folder}/{name} has only dataclass's docstring"


# Solvers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_bits(solver, path):
    x, grid, cond, noise = begin(path)
    once, again = (integrate(mixture(path), x, grid, solver, cond=cond, noise=noise) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(solver, path):
    x, grid, cond, noise = begin(path)
    together = integrate(mixture(path), x, grid, solver, cond=cond, noise=noise)
    for i in range(len(x)):
        own = {"y": cond["y"][i : i + 1]}
        alone = integrate(mixture(path), x[i : i + 1], grid, solver, cond=own, noise=Noise(noise.seeds[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_solver_serves_two_loops_at_once(solver):
    """State is a value: a loop inside a loop, with one solver object, disturbs neither."""
    x, grid, cond, noise = begin(Flow())
    f, inner = mixture(Flow()), []

    def run(watch=None):
        return integrate(f, x, grid, solver, cond=cond, noise=noise, watch=watch)

    outer = run(lambda i, t, x: inner.append(run()) if i == 2 else None)
    assert torch.equal(outer, run())
    assert torch.equal(inner[0], outer)


@pytest.mark.parametrize("path", [Flow(), EDM(), Trig()], ids=repr)
@pytest.mark.parametrize("solver", [p for p in SOLVERS if p.values[0].order is not None])
def test_the_measured_order_is_the_declared_one(solver, path):
    """On points drawn from x_t itself, from 0.8 to 0.1 of t1."""
    generator = torch.Generator().manual_seed(0)
    x0, _ = mixture(path).sample(64, generator)
    x = path.mix(x0, torch.randn(64, 2, generator=generator, dtype=torch.float64), f64(0.8 * path.t1)[0])
    order = measured_order(solver, mixture(path), x, 0.8 * path.t1, 0.1 * path.t1, (64, 128, 256))
    assert order == pytest.approx(solver.order, abs=0.1 if solver.order == 1 else 0.15)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_counted_evaluations_are_the_declared_ones(solver, path, steps):
    x, _, cond, noise = begin(path)
    counted = Counted(mixture(path))
    grid = torch.linspace(path.t1, 0, steps + 1, dtype=torch.float64)
    integrate(counted, x, grid, solver, cond=cond, noise=noise)
    assert counted.calls == solver.nfe(steps)
    assert counted.rows == counted.calls * len(x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_lands_on_data(solver, path):
    """Where all data is one point, the only thing a sampler that ends at t = 0 can return is that point."""
    x, grid, _, noise = begin(path)
    point = Gaussian(path, f64(1.0, -2.0), f64(0.0, 0.0))
    landed = integrate(point, x, grid, solver, noise=noise)
    torch.testing.assert_close(landed, point.mean.expand_as(x), rtol=0, atol=1e-11)


class Half(torch.nn.Module):
    """A network in single precision."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        return x / 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_solver_computes_in_the_dtype_of_x(solver, path, dtype):
    x, grid, _, noise = begin(path)
    out = integrate(Denoiser(Half(), path, V()), x.to(dtype), grid, solver, noise=noise)
    assert out.dtype == dtype


# Guides

# Guides whose x0 and eps come from two predictions, on purpose: the pair is not one of x.
PAIRS = {"cfgpp"}
# What makes a guide plain guidance, linear in its scale; None where nothing does.
PLAIN = {"apg": {"momentum": 0.0, "threshold": None, "eta": 1.0}, "rescale": {"phi": 0.0}, "cfg_zero": None}


@dataclasses.dataclass(frozen=True, eq=False)
class Deaf:
    """A denoiser that does not hear its condition: a weaker model of the same data."""

    inner: Mixture
    path = property(lambda self: self.inner.path)

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return self.inner(x, t)

    def null(self, cond):
        return self.inner.null(cond)


def guided(name, path, **changes):
    """The guided mixture, the count of evaluations beneath it, and a batch to ask it about."""
    generator = torch.Generator().manual_seed(0)
    x0, y = mixture(path).sample(6, generator)
    t = f64(0.4 * path.t1)[0]
    x = path.mix(x0, torch.randn(6, 2, generator=generator, dtype=torch.float64), t)
    counted = Counted(mixture(path))
    times = torch.linspace(path.t1, 0, 11, dtype=torch.float64)
    needed = {"weak": Deaf(mixture(path))} if needs_fields(find(name, "samplers.guides")) else {}
    return build("samplers.guides", name, **needed, **changes)(counted, times), counted, (x, t, {"y": y})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("guide", GUIDES)
def test_scale_one_is_the_conditional_model(guide, path):
    f, counted, (x, t, cond) = guided(guide, path, scale=1.0)
    got, exact = f(x, t, cond), counted.inner(x, t, cond)
    torch.testing.assert_close(got.x0, exact.x0, rtol=1e-12, atol=1e-12)
    if guide not in PAIRS:
        torch.testing.assert_close(got.eps, exact.eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("guide", [name for name in GUIDES if PLAIN.get(name, {}) is not None])
def test_scale_zero_is_the_unconditional_model(guide, path):
    f, counted, (x, t, cond) = guided(guide, path, scale=0.0, **PLAIN.get(guide, {}))
    for ours, exact in zip(f(x, t, cond), counted.inner(x, t), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guided_prediction_adds_up_to_x_unless_it_is_a_pair(guide, path):
    f, counted, (x, t, cond) = guided(guide, path, scale=3.0)
    got = f(x, t, cond)
    if guide in PAIRS:  # then it lacks what guidance would have done to eps, and nothing else
        c, u = counted.inner(x, t, cond), counted.inner(x, t)
        x = x - path.sigma(t) * 3 * (c.eps - u.eps)
    torch.testing.assert_close(path.mix(*got, t), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("field", ["interval", "steps"])
@pytest.mark.parametrize("guide", GUIDES)
def test_outside_its_interval_only_the_conditional_network_runs(guide, field):
    """At the t of `guided`, sigma / alpha is 0.4 / 0.6 and the step is number 6 of 10."""
    inside = {"interval": [(0.5, 1.0), None], "steps": [(0.6, 0.7), None]}[field]
    outside = {"interval": [(0.7, 9.0), (0.1, 0.6)], "steps": [(0.7, 1.0), (0.0, 0.6)]}[field]
    for bounds in inside + outside:
        f, counted, (x, t, cond) = guided(guide, Flow(), scale=3.0, **{field: bounds})
        got = f(x, t, cond)
        assert counted.calls == (1 if bounds in outside else 2), bounds
        assert torch.equal(got.x0, counted.inner(x, t, cond).x0) == (bounds in outside)


@pytest.mark.parametrize("guide", GUIDES)
def test_only_the_first_channels_are_guided(guide):
    f, counted, (x, t, cond) = guided(guide, Flow(), scale=3.0, channels=1, **(PLAIN.get(guide) or {}))
    got, exact = f(x, t, cond), counted.inner(x, t, cond)
    assert torch.equal(got.x0[:, 1], exact.x0[:, 1])
    assert torch.equal(got.eps[:, 1], exact.eps[:, 1])
    assert not torch.equal(got.x0[:, 0], exact.x0[:, 0])


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guided_row_does_not_depend_on_its_batch_and_times_may_differ(guide):
    """Two calls one after the other, of the whole batch and of each row alone; then each row at its own time."""
    f, _, (x, t, cond) = guided(guide, Flow(), scale=3.0)
    times = torch.linspace(0.6, 0.5, len(x), dtype=torch.float64)
    together = [f(x, t, cond).x0, f(x, times, cond).x0]
    for i in range(len(x)):
        f, _, _ = guided(guide, Flow(), scale=3.0)
        row = {"y": cond["y"][i : i + 1]}
        for whole, own in zip(together, (t, times[i]), strict=True):
            torch.testing.assert_close(f(x[i : i + 1], own, row).x0[0], whole[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_passes_the_path_and_the_null_condition_on(guide):
    f, counted, (_, _, cond) = guided(guide, Trig())
    assert f.path == Trig()
    assert torch.equal(f.null(cond)["y"], counted.null(cond)["y"])


# Grids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_a_grid_falls_from_near_noise_to_data(grid, path, steps):
    times = grid.times(path, steps)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert float(times[-1]) == 0
    assert bool((times.diff() < 0).all())
    assert float(path.alpha(times[0]) / path.sigma(times[0])) < 0.1
    assert float(times[0]) <= path.t1
