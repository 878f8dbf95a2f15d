"""The laws that every plug-in obeys, over every file that the folders hold: a new file is tested without a new test.

A plug-in is built with its defaults, which therefore must work. What only one plug-in does is tested beside its folder.
The users' plug-ins of tests/contracts obey them too: contracts are not gen's alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re

import pytest
import torch

from gen.cli.list import FOLDERS
from gen.config.spec import build, describe, find, name_of, names, spec_of
from gen.diffusion.composition import compose
from gen.diffusion.denoiser import CountingDenoiser, Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import V
from gen.diffusion.path import DDPM, EDM, GVP, Flow, NoisePath, Table, Trig
from gen.diffusion.prediction import Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Integers
from gen.diffusion.worlds import Gaussian, Mixture
from gen.samplers.caches.custom import Custom
from gen.samplers.solvers.euler import Euler
from gen.text.mask_path import MaskPath
from tests.ode import measured_order, runge_kutta
from tests.over import over
from tests.samplers.caches.toy import Toy, contexts, random_dit, walk


def every(folder, **given):
    """Each plug-in of a folder, built with its defaults; those that have none are tested beside their folder.

    given: fields by name, for those whose defaults fit no network here.
    """
    return [
        pytest.param(build(folder, name, **given.get(name, {})), id=name)
        for name in names(folder)
        if not needs_fields(find(name, folder))
    ]


def needs_fields(thing):
    """Whether it has no defaults to be built with, as a data set that needs a file."""
    missing = dataclasses.MISSING
    return any(f.init and f.default is missing and f.default_factory is missing for f in dataclasses.fields(thing))


MINE = "tests.contracts."  # a user's plug-ins
PATHS = [
    *every("diffusion.path"),
    *(pytest.param(DDPM(kind), id=f"ddpm-{kind}") for kind in ("cosine", "scaled_linear")),
    pytest.param(Table((0.98, 0.9, 0.6, 0.2, 0.05, 0.004)), id="table"),
]
SOLVERS = [*every("samplers.solvers"), pytest.param(build("samplers.solvers", MINE + "my_solver:MySolver"), id="mine")]
GRIDS = [*every("samplers.grids"), pytest.param(build("samplers.grids", MINE + "my_grid:MyGrid"), id="mine")]
GUIDES = [*names("samplers.guides"), MINE + "my_guide:MyGuide"]


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
    (folder, name)
    for folder in FOLDERS
    for name in names(folder)
    if dataclasses.is_dataclass(find(name, folder)) and not needs_fields(find(name, folder))
]


@over(plug_in=BUILT_BY_DEFAULT)
def test_a_spec_builds_an_equal_thing(plug_in):
    folder, name = plug_in
    thing = build(folder, name)
    spec = json.loads(json.dumps(spec_of(thing), allow_nan=False))
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


# A piece that assumes a path is wrong on every other one, without a word


OWN_PATHS = {"reparameterised": "a network of one path as one of another; it is told both"}


@over(plug_in=BUILT_BY_DEFAULT)
def test_no_plug_in_has_a_path_of_its_own_by_default(plug_in):
    """It takes the path in use: of the denoiser, of the context, or of the run."""
    folder, name = plug_in
    thing = build(folder, name)
    if folder in ("diffusion.path", "text.mask_path") or name in OWN_PATHS:
        return
    values = {field.name: getattr(thing, field.name, None) for field in dataclasses.fields(thing)}
    assert not [key for key, value in values.items() if isinstance(value, (NoisePath, MaskPath))]


UNIT = math.pi / 2  # of Trig's time, in which GVP is the same path


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_does_not_depend_on_the_unit_of_time(solver):
    x, grid, cond, noise = begin(GVP())
    got, same = (
        integrate(mixture(path), x, grid * unit, solver, cond=cond, noise=noise)
        for path, unit in ((GVP(), 1), (Trig(), UNIT))
    )
    torch.testing.assert_close(got, same, rtol=1e-6, atol=1e-6)  # some find times by bisection


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_does_not_depend_on_the_unit_of_time(grid):
    torch.testing.assert_close(grid.times(GVP(), 9) * UNIT, grid.times(Trig(), 9), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("times", every("diffusion.times"))
def test_training_times_do_not_depend_on_the_unit_of_time(times):
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    if not isinstance(times, Integers):  # of a table, whose entries are the unit
        torch.testing.assert_close(times.at(u, GVP()) * UNIT, times.at(u, Trig()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_does_not_depend_on_the_unit_of_time(guide):
    (f, _, batch), (same, _, again) = guided(guide, GVP(), scale=3.0), guided(guide, Trig(), scale=3.0)
    torch.testing.assert_close(f(*batch), same(*again), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinate", every("samplers.caches.coordinates"))
def test_a_coordinate_is_that_of_the_path_in_use(coordinate):
    """Up to a factor, which no predictor sees, on one path in two units of time; log-SNR differs on another path."""
    along = []
    for path in (GVP(), Trig(), Flow()):
        seen, grid = Seen(), torch.linspace(path.t1, 0, 5, dtype=torch.float64)
        integrate(Denoiser(seen, path, V()), torch.ones(2, 1, dtype=torch.float64), grid, Euler(), tap=seen)
        along.append(f64(*map(coordinate.value, seen.contexts)))
    same, other = along[1] * (along[0][1] / along[1][1]), along[2]
    torch.testing.assert_close(along[0], same)
    assert torch.allclose(along[0], other) == (name_of(type(coordinate)) != "lam")


class Seen(torch.nn.Module):
    """A network that calls its tap, and a tap that keeps the contexts."""

    def __init__(self):
        super().__init__()
        self.contexts = []

    def forward(self, x, t, cond, *, s=None, tap=None):
        return tap("trunk", lambda h: h / 2, x)

    def bind(self, context):
        self.contexts.append(context)
        return lambda site, compute, h: compute(h)


# Solvers


@pytest.mark.parametrize("solver", SOLVERS)
@over(path=PATHS)
def test_the_same_seed_gives_the_same_bits(solver, path):
    x, grid, cond, noise = begin(path)
    once, again = (integrate(mixture(path), x, grid, solver, cond=cond, noise=noise) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("solver", SOLVERS)
@over(path=PATHS)
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


@functools.cache
def trajectories(path, start, end):
    """Points of the mixture at `start`, and where the ODE leads them."""
    generator = torch.Generator().manual_seed(0)
    x0, _ = mixture(path).sample(64, generator)
    x = path.mix(x0, torch.randn(64, 2, generator=generator, dtype=torch.float64), f64(start)[0])
    return x, runge_kutta(mixture(path), x, start, end, 1024)


def with_orders(name, *orders):
    """Other orders than the default, whose rules tests/samplers/solvers/test_orders.py measures, too."""
    solvers = {f"{name}-{k}": build("samplers.solvers", name, solver_order=k) for k in orders}
    return [pytest.param(solver, id=key, marks=pytest.mark.slow) for key, solver in solvers.items()]


ORDERS = [
    *(p for p in SOLVERS if p.values[0].order is not None),
    *with_orders("dpmpp", 3),
    *with_orders("dpmpp_single", 3),
    *with_orders("unipc", 1, 3),
    *with_orders("deis", 3),
    *with_orders("exp_ab", 2, 4),
    *with_orders("flow_adams", 2, 3),
]


@pytest.mark.parametrize(
    "path", [Flow(), *(pytest.param(p, marks=pytest.mark.slow) for p in (EDM(8.0), Trig()))], ids=repr
)
@pytest.mark.parametrize("solver", ORDERS)
def test_the_measured_order_is_the_declared_one(solver, path):
    """From t1, where alpha may be 0, on a uniform grid; and inside, on points drawn from x_t itself.

    At least the declared one, up to a factor of log N. It may be up to two more where the first steps of a published
    multistep rule do not count; tests/samplers/solvers/test_orders.py measures what the rules themselves have.
    """
    world, unit = Gaussian(path, f64(0.5, -1.0), f64(0.5, 1.0)), Noise(tuple(range(16))).normal("start", (2,)).double()
    x, end = path.start(unit, f64(path.t1)[0]), 0.05 * path.t1
    truth = world.flow(x, f64(path.t1)[0], f64(end)[0])
    whole = measured_order(solver, world, x, path.t1, end, (128, 256), truth)
    ends = 0.8 * path.t1, 0.1 * path.t1
    x, truth = trajectories(path, *ends)
    inside = measured_order(solver, mixture(path), x, *ends, (64, 128, 256), truth)
    assert solver.order - 0.4 < whole < solver.order + 2.2
    assert solver.order - 0.4 < inside < solver.order + 2.2


@pytest.mark.parametrize("solver", SOLVERS)
@over(path=PATHS)
@over(steps=[1, 2, 6])
def test_the_counted_evaluations_are_the_declared_ones(solver, path, steps):
    x, _, cond, noise = begin(path)
    counted = CountingDenoiser(mixture(path))
    grid = torch.linspace(path.t1, 0, steps + 1, dtype=torch.float64)
    integrate(counted, x, grid, solver, cond=cond, noise=noise)
    assert counted.calls == solver.nfe(steps) or (solver.nfe(steps) is None and counted.calls >= steps)
    assert counted.rows == counted.calls * len(x)


@pytest.mark.parametrize("solver", SOLVERS)
@over(path=PATHS)
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


@pytest.mark.parametrize("solver", SOLVERS)
@over(path=PATHS)
@over(dtype=[torch.float32, torch.bfloat16])
def test_a_solver_computes_in_the_dtype_of_x(solver, path, dtype):
    x, grid, _, noise = begin(path)
    out = integrate(Denoiser(Half(), path, V()), x.to(dtype), grid, solver, noise=noise)
    assert out.dtype == dtype


# Shapes: a signal [C, L], a picture [C, H, W], a film [C, T, H, W] are the same numbers to every piece

SHAPES = [(2, 3), (1, 2, 3), (1, 2, 1, 3)]
LINE = f64(*range(6))
ROWS_OF_SIX = Mixture(Flow(), torch.stack([LINE / 3, 1 - LINE]), f64(0.5, 0.3), f64(0.4, 0.6), torch.arange(2))


@dataclasses.dataclass(frozen=True, eq=False)
class Shaped:
    """An exact world of rows, on states of any shape."""

    inner: object
    path = property(lambda self: self.inner.path)

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return Prediction(*(part.reshape(x.shape) for part in self.inner(x.flatten(1), t, cond, s=s)))

    def null(self, cond):
        return self.inner.null(cond)


def sampled(solver, shape, guide=None):
    """Samples of a mixture in six dimensions as rows, from states of a shape."""
    noise = Noise(tuple(sample_seeds(0, 4)))
    grid, cond = torch.linspace(1, 0, 5, dtype=torch.float64), {"y": torch.tensor([0, 1, 1, 0])}
    x = noise.normal("start", shape).double()
    loop = compose(Shaped(ROWS_OF_SIX), grid, solver, guide, cond, x)
    return integrate(loop.f, x, loop.grid, solver, cond=cond, noise=noise).flatten(1)


@over(solver=SOLVERS)
def test_a_solver_does_not_depend_on_the_shape_of_a_state(solver):
    for shape in SHAPES:
        torch.testing.assert_close(sampled(solver, shape), sampled(solver, (6,)), rtol=1e-10, atol=1e-10)


@over(guide=GUIDES)
def test_a_guide_does_not_depend_on_the_shape_of_a_state(guide):
    needed = {"weak": Shaped(Deaf(ROWS_OF_SIX))} if needs_fields(find(guide, "samplers.guides")) else {}
    needed |= {"over": "sample"} if guide == "renorm" else {}  # its default takes norms over channels
    built = build("samplers.guides", guide, scale=3.0, **needed)
    for shape in SHAPES:
        torch.testing.assert_close(
            sampled(Euler(), shape, built), sampled(Euler(), (6,), built), rtol=1e-10, atol=1e-10
        )


# Guides

# Guides whose x0 and eps come from two predictions, on purpose: the pair is not one of x.
PAIRS = {"cfgpp"}
# What makes a guide plain guidance, linear in its scale; None where nothing does.
PLAIN = {"apg": {"momentum": 0.0, "threshold": None, "eta": 1.0}, "rescale": {"phi": 0.0}, "cfg_zero": None}
PLAIN |= {"renorm": {"cap": 1e9}, "dynamic": None}


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
    """The guided mixture, its loop, which counts the evaluations, and a batch to ask it about."""
    generator = torch.Generator().manual_seed(0)
    x0, y = mixture(path).sample(6, generator)
    t = f64(0.4 * path.t1)[0]
    x = path.mix(x0, torch.randn(6, 2, generator=generator, dtype=torch.float64), t)
    times, cond = torch.linspace(path.t1, 0, 11, dtype=torch.float64), {"y": y}
    needed = {"weak": Deaf(mixture(path))} if needs_fields(find(name, "samplers.guides")) else {}
    guide = build("samplers.guides", name, **needed, **changes)
    loop = compose(mixture(path), times, Euler(), guide, cond, x)
    return loop.f, loop, (x, t, cond)


@pytest.mark.parametrize("guide", GUIDES)
@over(path=PATHS)
def test_scale_one_is_the_conditional_model(guide, path):
    f, loop, (x, t, cond) = guided(guide, path, scale=1.0)
    got, exact = f(x, t, cond), loop.counters[0].inner(x, t, cond)
    torch.testing.assert_close(got.x0, exact.x0, rtol=1e-12, atol=1e-12)
    if guide not in PAIRS:
        torch.testing.assert_close(got.eps, exact.eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guide", [name for name in GUIDES if PLAIN.get(name, {}) is not None])
@over(path=PATHS)
def test_scale_zero_is_the_unconditional_model(guide, path):
    f, loop, (x, t, cond) = guided(guide, path, scale=0.0, **PLAIN.get(guide, {}))
    for ours, exact in zip(f(x, t, cond), loop.counters[0].inner(x, t), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("guide", GUIDES)
@over(path=PATHS)
def test_a_guided_prediction_adds_up_to_x_unless_it_is_a_pair(guide, path):
    f, loop, (x, t, cond) = guided(guide, path, scale=3.0)
    got = f(x, t, cond)
    if guide in PAIRS:  # then it lacks what guidance would have done to eps, and nothing else
        c, u = loop.counters[0].inner(x, t, cond), loop.counters[0].inner(x, t)
        x = x - path.sigma(t) * 3 * (c.eps - u.eps)
    torch.testing.assert_close(path.mix(*got, t), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("field", ["interval", "steps"])
@pytest.mark.parametrize("guide", GUIDES)
def test_outside_its_interval_only_the_conditional_network_runs(guide, field):
    """At the t of `guided`, sigma / alpha is 0.4 / 0.6 and the step is number 6 of 10."""
    inside = {"interval": [(0.5, 1.0), None], "steps": [(0.6, 0.7), None]}[field]
    outside = {"interval": [(0.7, 9.0), (0.1, 0.6)], "steps": [(0.7, 1.0), (0.0, 0.6)]}[field]
    for bounds in inside + outside:
        f, loop, (x, t, cond) = guided(guide, Flow(), scale=3.0, **{field: bounds})
        got = f(x, t, cond)
        assert loop.rows == len(x) * (1 if bounds in outside else 2), bounds
        assert torch.equal(got.x0, loop.counters[0].inner(x, t, cond).x0) == (bounds in outside)


@pytest.mark.parametrize("guide", GUIDES)
def test_only_the_first_channels_are_guided(guide):
    f, loop, (x, t, cond) = guided(guide, Flow(), scale=3.0, channels=1, **(PLAIN.get(guide) or {}))
    got, exact = f(x, t, cond), loop.counters[0].inner(x, t, cond)
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
    f, loop, (_, _, cond) = guided(guide, Trig())
    assert f.path == Trig()
    assert torch.equal(f.null(cond)["y"], loop.counters[0].null(cond)["y"])


# Grids


@pytest.mark.parametrize("grid", GRIDS)
@over(path=PATHS)
@over(steps=[1, 2, 18])
def test_a_grid_falls_from_near_noise_to_data(grid, path, steps):
    times = grid.times(path, steps)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert float(times[-1]) == 0
    assert bool((times.diff() < 0).all())
    assert float(path.alpha(times[0]) / path.sigma(times[0])) < 0.1
    assert float(times[0]) <= path.t1


# Caches: the presets; every policy with a Taylor predictor, at one site; every predictor, every few steps


SETTLED = {"mask": {"mask": (True, True, False, False) * 3}, "magnitude": {"ratios": (1.0,) * 12}}
SETTLED |= {"residual": {"warmup": 2}, "indicator": {"warmup": 2}}  # a slope needs two snapshots
POLICIES = [
    pytest.param(Custom(policy={"name": name, **SETTLED.get(name, {})}, sites=("trunk",)), id=f"policy-{name}")
    for name in (*names("samplers.caches.policies"), MINE + "my_cache_policy:MyCachePolicy")
]
PREDICTORS = [
    pytest.param(Custom(predictor=name), id=f"predictor-{name}") for name in names("samplers.caches.predictors")
]
CACHES = [*every("samplers.caches", ddt_shared={"sites": ("trunk",)}), *POLICIES, *PREDICTORS]
ROWS = f64(1.0, 0.4, 2.5)[:, None]


def ready(cache, net):
    """The cache, calibrated if that is what it needs."""
    run = cache.start(12)
    walk(net, run, contexts(12), ROWS)
    return cache.calibrated(run.report())


def turned_off(cache):
    """Each has one field that turns it off."""
    off = {"interval": 1, "threshold": 0.0, "keep": 1.0}
    fields = {f.name for f in dataclasses.fields(cache)} & set(off)
    if isinstance(cache, Custom):
        return dataclasses.replace(cache, policy=turned_off(cache.policy))
    return dataclasses.replace(cache, **{name: off[name] for name in fields} or {"mask": ()})


@pytest.mark.parametrize("part", ["", ".policies", ".predictors", ".coordinates"])
def test_a_cache_s_spec_builds_an_equal_thing(part):
    folder = f"samplers.caches{part}"
    for (thing,) in (param.values for param in every(folder)):
        assert build(folder, json.loads(json.dumps(spec_of(thing)))) == thing
        assert len(describe(type(thing))) >= 10


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_is_turned_off_changes_no_bit(cache):
    """In float32, under guidance that comes and goes, in a solver of two stages."""
    net, noise = random_dit(), Noise(tuple(sample_seeds(0, 4)))
    times = torch.linspace(1, 0, 13, dtype=torch.float64)
    f = build("samplers.guides", "cfg", scale=2.0, interval=(0.3, 2.0))(Denoiser(net, Flow(), V()), times)
    x, cond = noise.normal("start", (1, 8, 8)), {"y": noise.integers("y", 3)}
    run = ready(turned_off(cache), Toy()).start(12)
    got, plain = (integrate(f, x, times, build("samplers.solvers", "heun"), cond=cond, tap=tap) for tap in (run, None))
    assert torch.equal(got, plain)
    report = run.report()
    assert report.hits == 0
    assert report.fraction == report.fraction_per_row == 1


FOLLOWED = [
    pytest.param(*cache.values, degree, id=f"{cache.id}-{degree}")
    for cache in CACHES
    for degree in (0, 1)
    if degree <= ready(*cache.values, Toy(degree)).start(12).predictor.degree
]


@pytest.mark.parametrize(("cache", "degree"), FOLLOWED)
def test_features_that_a_predictor_can_follow_cost_nothing(cache, degree):
    """Constant ones for all; affine ones for what extrapolates: the wrong direction would double their change."""
    net = Toy(degree)
    cache = ready(cache, net)
    run = cache.start(12)
    got, exact = walk(net, run, contexts(12), ROWS), walk(net, None, contexts(12), ROWS)
    assert degree or run.report().hits > 0
    for branch in exact:
        torch.testing.assert_close(got[branch], exact[branch], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cache", CACHES)
def test_a_row_under_a_cache_does_not_depend_on_its_batch(cache):
    net = Toy(3)
    cache = ready(cache, net)
    run = cache.start(12)
    together, shares = walk(net, run, contexts(12), ROWS), []
    for i in range(len(ROWS)):
        alone = cache.start(12)
        out = walk(net, alone, contexts(12), ROWS[i : i + 1])
        shares.append(alone.report().fraction)
        for branch in out:
            torch.testing.assert_close(out[branch][:, 0], together[branch][:, i], rtol=1e-11, atol=1e-11)
    assert run.report().fraction_per_row == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize("cache", CACHES)
def test_neither_runs_nor_branches_leak_into_each_other(cache):
    net = Toy(3)
    cache = ready(cache, net)
    own = [walk(net, cache.start(12), contexts(12), x) for x in (ROWS, -ROWS)]
    runs, turns = [cache.start(12), cache.start(12)], [[], []]
    for place in contexts(12):  # two loops, taking turns
        for run, x, out in zip(runs, (ROWS, -ROWS), turns, strict=True):
            out.append(walk(net, run, [place], x, branches=("uncond", "main")))
    for out, exact in zip(turns, own, strict=True):
        for branch in exact:
            assert torch.equal(torch.cat([step[branch] for step in out]), exact[branch])
    for branch in ("main", "uncond"):
        assert torch.equal(walk(net, cache.start(12), contexts(12), ROWS, (branch,))[branch], own[0][branch])


@pytest.mark.parametrize("cache", CACHES)
def test_reported_hits_are_calls_saved(cache):
    net = Toy(2)
    cache = ready(cache, net)
    net.calls.clear()
    run = cache.start(12)
    walk(net, run, contexts(12), ROWS)
    report = run.report()
    assert json.loads(json.dumps(report.json()))["hits"] == report.hits
    assert re.fullmatch(
        r"CacheReport\(\d+ of \d+ evaluations in full, \d+ of \d+ sites saved, [\d,]+ bytes\)", str(report)
    )
    for k, site in enumerate(report.sites):
        done = sum(row[k] for row in report.computed)
        if site.endswith(".raw") or site == "final":  # what nothing else runs inside of
            assert net.calls[site] == done, site
        assert done <= net.calls[site]
    assert report.evaluations == net.calls["final"] == 24
    assert report.hits == 24 * len(report.sites) - sum(map(sum, report.computed))
