"""Stages at times of their own: exact pyramids, the published numbers of a Gaussian one, and every solver on it."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.diffusion.decomposition import Cosine, Haar, Laplacian, pack, unpack
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.noise import Noise
from gen.diffusion.path import Flow, Staged
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian, GaussianStages
from gen.samplers.grids.linear import Linear
from gen.samplers.grids.phases import Phases
from gen.samplers.solvers.euler import Euler
from tests.over import naming, over

PYRAMIDS = [kind(stages) for kind in (Laplacian, Haar, Cosine) for stages in (1, 2, 3)]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def pyramid(pixels, shape, decomposition):
    """Covariance of all stages of images with a covariance of pixels; and from stages to pixels, [pixels, D]."""
    pictures = torch.eye(len(pixels), dtype=torch.float64).reshape(-1, *shape)
    down = pack(decomposition.decompose(pictures)).mT
    sizes = tuple(map(math.prod, decomposition.shapes(shape)))
    parts = unpack(torch.eye(sum(sizes), dtype=torch.float64), decomposition.shapes(shape))
    return down @ pixels @ down.mT, decomposition.recompose(parts).flatten(1).mT, sizes


def smooth(side):
    """Covariance exp(-distance / 2) of the pixels of a square."""
    line = torch.arange(side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    return torch.exp(-torch.cdist(points, points) / 2)


def world(thresholds=(0.3,), side=4):
    decomposition = Laplacian(len(thresholds) + 1)
    covariance, up, sizes = pyramid(smooth(side), (1, side, side), decomposition)
    return GaussianStages(Staged(thresholds), covariance, sizes), up


def start(f, n=3):
    return Noise(tuple(range(n))).normal("start", (len(f.covariance),)).double()


# Decompositions


@over(d=PYRAMIDS)
def test_recomposing_gives_back_x_and_constants_are_coarse(d):
    x = Noise((0, 1)).normal("x", (3, 16, 8)).double()
    parts = d.decompose(x)
    assert [tuple(part.shape[1:]) for part in parts] == d.shapes((3, 16, 8))
    torch.testing.assert_close(d.recompose(parts), x, rtol=0, atol=2e-15)
    state = pack(parts)
    assert all(torch.equal(a, b) for a, b in zip(unpack(state, d.shapes((3, 16, 8))), parts, strict=True))
    coarse, *details = d.decompose(torch.ones_like(x))
    torch.testing.assert_close(coarse, torch.ones_like(coarse), rtol=0, atol=1e-14)
    assert all(detail.abs().max() < 1e-14 for detail in details)
    if d.stages == 2 and not isinstance(d, Cosine):
        assert torch.equal(parts[0], avg_pool2d(x, 2))
    if d.stages == 2 and not isinstance(d, Laplacian):  # both are projections: details have nothing coarse
        torch.testing.assert_close(d.down(parts[1]), torch.zeros_like(parts[0]), rtol=0, atol=1e-14)


def test_a_side_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="Laplacian: 3 stages of 6 x 8: sides must be multiples of 4"):
        Laplacian(3).shapes((1, 6, 8))


# The path


def test_later_stages_wait_enter_and_catch_up():
    t = f64(1, 0.7, 0.5, 0.3, 0.2, 0.1, 0)
    stages = Staged((0.5, 0.2)).t_to_network(t)  # phases 1 .. .5, .5 .. .2 and .2 .. 0
    assert torch.equal(stages[:, 0, 0], t) and bool((stages[:, 0, 1] == 1).all())
    torch.testing.assert_close(stages[:, 1, 0], f64(1, 1, 1, 1 - 0.8 * 2 / 3, 0.2, 0.1, 0))
    torch.testing.assert_close(stages[:, 1, 1], f64(0, 0, 0.8 / 0.3, 0.8 / 0.3, 1, 1, 1))
    torch.testing.assert_close(stages[:, 2, 0], f64(1, 1, 1, 1, 1, 0.5, 0))
    torch.testing.assert_close(stages[:, 2, 1], f64(0, 0, 0, 0, 5, 5, 5))
    assert torch.equal(Staged((0.5, 0.2)).t_to_network(t[3]), stages[3])
    assert Staged((0.5, 0.2)).knots == (0.5, 0.2) and Flow().knots == ()
    with pytest.raises(UserError, match=r"Staged: thresholds = \(0.2, 0.5\); they must fall"):
        Staged((0.2, 0.5))


def test_the_grid_shares_out_the_steps_and_meets_every_threshold():
    times = Phases().times(Staged((0.1,)), 40)  # the paper's 30 + 10
    torch.testing.assert_close(times, torch.cat([torch.linspace(1, 0.1, 31)[:-1], torch.linspace(0.1, 0, 11)]).double())
    assert times[30] == 0.1 and Phases((4, 1)).times(Staged((0.1,)), 50)[40] == 0.1  # its code's 40 + 10
    for steps in (3, 4, 7, 40):
        for inner in ("linear", "karras", "shift"):
            times = Phases(inner=build("samplers.grids", inner)).times(Staged((0.3, 0.1)), steps)
            assert len(times) == steps + 1 and {1.0, 0.3, 0.1, 0.0} <= set(times.tolist())
            assert bool((times.diff() < 0).all())
    assert Phases((1, 0.01, 1, 1)).counts(4, 40) == [13, 1, 13, 13]  # a phase of a small share has a step
    assert torch.equal(Phases().times(Flow(), 5), Linear().times(Flow(), 5))
    with pytest.raises(UserError, match="2 steps; this path has 3 phases, and each needs one"):
        Phases().times(Staged((0.3, 0.1)), 2)
    with pytest.raises(UserError, match="this path has 2 phases, and needs as many"):
        Phases((1, 1, 1)).times(Staged((0.3,)), 9)


def test_what_has_no_meaning_on_stages_is_refused():
    f, _ = world()
    x, noise = start(f), Noise((0, 1, 2))
    with pytest.raises(UserError, match=r"the grid lacks 0.3, where a stage of the path begins: take the grid phases"):
        integrate(f, x, [1, 0.5, 0], Euler())
    with pytest.raises(UserError, match=r"begins in noise, at t = 1, and not at 0.5"):
        f.path.start(x, f64(0.5)[0])
    with pytest.raises(UserError, match="train by the objective dfm"):
        f.path.mix(x, x, f64(0.5)[0])
    for name in names("samplers.solvers"):
        solver = build("samplers.solvers", name)
        if solver.order is None and name not in ("adaptive", "jump"):
            with naming(name), pytest.raises(UserError, match="a rule for the ODE"):
                integrate(f, x, Phases().times(f.path, 4), solver, noise=noise)


# The Gaussian pyramid: images of 4 x 4 with covariance exp(-distance / 2)


def test_the_best_losses_are_the_computed_ones():
    f, _ = world()
    times = torch.tensor([[[t, float(t < 1)] for t in pair] for pair in ((0.5, 1), (0.5, 0.5), (0.1, 0.5), (1, 0.5))])
    losses = f.best_loss(times.double())
    wanted = f64([1.38640, 0], [1.31043, 0.88992], [1.19191, 0.82570], [0, 0.91317])
    torch.testing.assert_close(losses, wanted, rtol=0, atol=6e-6)
    coarse, fine = f.covariance.diagonal().split(f.sizes)
    torch.testing.assert_close(torch.stack([coarse.mean(), fine.mean()]), f64(0.67653, 0.32340), rtol=0, atol=6e-6)
    line = GaussianStages(Flow(), f64([1.0]), (1,))
    t = f64(1e-9, 0.25, 0.5, 0.75, 1)
    one = line.best_loss(torch.stack([t, torch.ones_like(t)], -1)[:, None])[:, 0]
    torch.testing.assert_close(one, f64(1, 1.6, 2, 1.6, 1))


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.3, (0.14635, 0.07781, 0.04024)), (0.1, (0.16351, 0.08674, 0.04479))]
)
def test_euler_has_the_computed_errors_of_covariance(threshold, wanted):
    """15 + 5, 30 + 10 and 60 + 20 steps halve the error: first order through the threshold."""
    f, up = world((threshold,))
    noise = torch.eye(20, dtype=torch.float64)
    for steps, error in zip((20, 40, 80), wanted, strict=True):
        gain = up @ integrate(f, noise, Phases().times(f.path, steps), Euler()).mT
        assert float((gain @ gain.mT - smooth(4)).norm() / smooth(4).norm()) == pytest.approx(error, abs=6e-6)


@pytest.mark.slow
def test_euler_goes_on_halving_it():
    f, up = world((0.3,))
    for steps, error in ((160, 0.02048), (320, 0.01033)):
        gain = up @ integrate(f, torch.eye(20, dtype=torch.float64), Phases().times(f.path, steps), Euler()).mT
        assert float((gain @ gain.mT - smooth(4)).norm() / smooth(4).norm()) == pytest.approx(error, abs=6e-6)


SOLVERS = [(name, {}) for name in names("samplers.solvers") if build("samplers.solvers", name).order is not None]
SOLVERS += [("dpmpp", {"solver_order": 3}), ("unipc", {"solver_order": 3}), ("deis", {"solver_order": 3})]
SOLVERS += [("exp_ab", {"solver_order": 4}), ("flow_adams", {"solver_order": 2}), ("flow_adams", {"solver_order": 3})]


def check_order(thresholds, solver, steps):
    """From pure noise to t = .05, past every knot; without a fresh start or the right side of a knot, 1 or less."""
    name, fields = solver
    f, _ = world(thresholds)
    x, rule, ends = start(f, 1), build("samplers.solvers", name, **fields), (1.0, *thresholds, 0.05)

    def end(rule, n):
        parts = [torch.linspace(a, b, n + 1, dtype=torch.float64) for a, b in itertools.pairwise(ends)]
        return integrate(f, x, torch.cat([parts[0], *(part[1:] for part in parts[1:])]), rule)

    errors = [float((end(rule, n) - truth(thresholds)).norm()) for n in steps]
    assert rule.order - 0.4 < math.log2(errors[0] / errors[1]) < rule.order + 2.2


@over(solver=[("heun", {}), ("rk4", {}), ("dpmpp", {}), ("unipc", {}), ("flow_adams", {})])
def test_rules_keep_their_order_through_a_threshold(solver):
    check_order((0.4,), solver, (16, 32))


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [(0.4,), (0.5, 0.2)], ids=str)
@over(solver=SOLVERS)
def test_every_rule_keeps_its_order_through_the_thresholds(solver, thresholds):
    check_order(thresholds, solver, (48, 96))


TRUTHS = {}


def truth(thresholds):
    """Where the ODE leads, by the classical rule in small steps."""
    if thresholds not in TRUTHS:
        f, _ = world(thresholds)
        ends = (1.0, *thresholds, 0.05)
        parts = [torch.linspace(a, b, 201, dtype=torch.float64) for a, b in itertools.pairwise(ends)]
        grid = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
        TRUTHS[thresholds] = integrate(f, start(f, 1), grid, build("samplers.solvers", "rk4"))
    return TRUTHS[thresholds]


@over(solver=SOLVERS)
def test_a_sample_does_not_depend_on_its_batch_and_repeats(solver):
    name, fields = solver
    f, _ = world()
    x, grid = start(f), Phases().times(f.path, 6)
    together = integrate(f, x, grid, build("samplers.solvers", name, **fields))
    assert torch.equal(together, integrate(f, x, grid, build("samplers.solvers", name, **fields)))
    alone = integrate(f, x[1:2], grid, build("samplers.solvers", name, **fields))
    torch.testing.assert_close(alone[0], together[1], rtol=1e-10, atol=1e-10)


def test_steps_of_their_own_for_each_sample_cross_thresholds_too():
    f, _ = world((0.4,))
    x = start(f, 2)
    got = integrate(f, x, [1, 0.4, 0.05], build("samplers.solvers", "adaptive", rtol=1e-6, atol=1e-6))
    torch.testing.assert_close(got[:1], truth((0.4,)), rtol=1e-4, atol=1e-4)


def test_rules_without_memory_count_as_declared():
    f, _ = world()
    for name in ("euler", "ddim", "heun", "midpoint", "rk4", "dpmpp_single"):
        solver, counted = build("samplers.solvers", name), CountingDenoiser(f)
        integrate(counted, start(f), Phases().times(f.path, 8), solver)
        assert counted.calls == solver.nfe(8), name


def test_one_stage_is_the_flow_path():
    """Also in its velocity: the Gaussian world of plain flow matching, bit by bit up to rounding."""
    std = f64(0.5, 1.0, 2.0)
    f, plain = GaussianStages(Staged(()), std.square().diag(), (3,)), Gaussian(Flow(), f64(0, 0, 0), std)
    x, grid = start(f), torch.linspace(1, 0, 9, dtype=torch.float64)
    for name in ("euler", "rk4", "dpmpp"):
        solver = build("samplers.solvers", name)
        torch.testing.assert_close(integrate(f, x, grid, solver), integrate(plain, x, grid, solver))


def test_the_coarsest_stage_alone_is_flow_matching_of_pooled_images():
    """Until the first threshold, whatever is finer: the same numbers as the flow of the pooled images alone."""
    f, _ = world((0.3,))
    pooled = GaussianStages(Staged(()), f.covariance[:4, :4], (4,))
    x, grid = start(f), torch.linspace(1, 0.3, 9, dtype=torch.float64)
    for name in ("euler", "heun", "flow_adams"):
        solver = build("samplers.solvers", name)
        out = integrate(f, x, grid, solver)
        torch.testing.assert_close(out[:, :4], integrate(pooled, x[:, :4], grid, solver), rtol=0, atol=1e-13)
        torch.testing.assert_close(out[:, 4:], x[:, 4:], rtol=0, atol=1e-13)
