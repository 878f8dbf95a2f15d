"""Searches against brute force on small spaces, and what they find against the usual grids on an exact mixture."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.path import EDM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Context, ContextualTap, FeatureRecorder
from gen.diffusion.worlds import Mixture
from gen.models.dit import DiT
from gen.samplers.caches.searched import SearchedMask, SkipSession
from gen.samplers.grids.exponential import Exponential
from gen.samplers.grids.karras import Karras
from gen.samplers.grids.linear import Linear
from gen.samplers.grids.searched import Searched
from gen.samplers.search.dynamic import Dynamic, cheapest_path
from gen.samplers.search.evolution import Breeder, Evolution
from gen.samplers.search.lib.problem import Candidate, Problem, pool_of
from gen.samplers.search.lib.trajectory import ReferenceTrajectory
from gen.samplers.solvers.euler import Euler
from tests.samplers.caches.toy import Toy, contexts, walk


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(path):
    means = f64([2, 0], [-1, 1.5], [-1, -1.5])
    return Mixture(path, means, f64(0.3, 0.2, 0.4), f64(0.5, 0.2, 0.3), torch.tensor([0, 1, 1]))


def reference(path, pool, solver, n, seed=0):
    """Searched with one set of noises, judged with another."""
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = mixture(path)
    points = ReferenceTrajectory.trace(lambda times: f, path.start(noise, pool[0]), pool, None, fine=2)
    return ReferenceTrajectory(lambda times: f, solver, pool, points)


def usual(path, steps):
    """Uniform, Karras and even log-SNR, from one start."""
    grids = [grid.times(path, steps) for grid in (Linear(), Karras(), Exponential())]
    return [torch.cat([grids[0][:1], times[1:]]) for times in grids]


def table(m, seed):
    return torch.rand(m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Dynamic programming


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_dynamic_programming_is_brute_force(steps, seed):
    costs, m = table(8, seed), 8
    every = [(0, *inner, m - 1) for inner in itertools.combinations(range(1, m - 1), steps - 1)]

    def total(indices):
        return float(sum(costs[i, j] for i, j in itertools.pairwise(indices)))

    found = cheapest_path(costs, steps)
    assert found in every
    assert total(found) == pytest.approx(min(map(total, every)), abs=1e-15)


def test_costs_are_those_of_single_steps_from_the_reference():
    pool = torch.linspace(1, 0, 9, dtype=torch.float64)
    world, f = reference(Flow(), pool, Euler(), 8), mixture(Flow())
    costs = world.costs()
    for i, j in ((0, 1), (2, 7), (5, 8)):
        ended = integrate(f, world.points[i], pool[[i, j]], Euler())
        assert float(costs[i, j]) == pytest.approx(float((ended - world.points[j]).square().mean().sqrt()), rel=1e-12)
    assert torch.isinf(costs.tril()[torch.ones(9, 9).tril().bool()]).all()


def test_dynamic_search_evaluates_once():
    pool = pool_of([*usual(Flow(), 4), *usual(Flow(), 10)])
    world = reference(Flow(), pool, Euler(), 32)
    calls = []
    problem = Problem(pool, 4, lambda times, mask: calls.append(1) or world.fitness(times), costs=world.costs)
    found = Dynamic().search(problem)
    assert found.evaluations == len(calls) == 1
    assert found.fitness == world.fitness(f64(*found.times))
    assert found.fitness < world.fitness(usual(Flow(), 4)[1])  # no worse a beginning than Karras's grid is here


# Evolution


def line(m=13):
    return torch.linspace(1, 0, m, dtype=torch.float64)


def fitness_of(seed):
    """An arbitrary landscape over grids and masks."""

    def fitness(times, mask):
        key = tuple(times.tolist()) + (() if mask is None else tuple(mask.flatten().tolist()))
        return (
            sum((t - 0.61 + k / 7) ** 2 for k, t in enumerate(times.tolist()))
            + random.Random(f"{seed}{key}").random() / 50
        )

    return fitness


@pytest.mark.parametrize("seed", range(3))
def test_evolution_reaches_brute_force_with_half_of_its_evaluations(seed):
    pool, fitness = line(), fitness_of(seed)
    every = [fitness(pool[[0, *inner, 12]], None) for inner in itertools.combinations(range(1, 12), 3)]  # 165
    method = Evolution(budget=80, population=20, mutations=10, crossovers=5, seed=seed)
    found = method.search(Problem(pool, 4, fitness))
    assert found.evaluations == 80
    assert found.fitness <= sorted(every)[1]


def test_with_budget_enough_evolution_sees_all_and_stops():
    pool, fitness = line(7), fitness_of(0)
    found = Evolution(budget=10_000, population=20, mutations=10, crossovers=5).search(Problem(pool, 3, fitness))
    every = [fitness(pool[[0, *inner, 6]], None) for inner in itertools.combinations(range(1, 6), 2)]
    assert found.evaluations == len(every) == 10
    assert found.fitness == min(every)


def test_evolution_is_decided_by_its_seed_evaluates_nothing_twice_and_keeps_its_budget():
    seen = []

    def fitness(times, mask):
        seen.append(tuple(times.tolist()))
        return fitness_of(1)(times, mask)

    known = [line()[[0, 3, 6, 9, 12]]]
    runs = [Evolution(budget=77, seed=seed).search(Problem(line(), 4, fitness, known)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].history != runs[2].history
    assert len(seen) == 3 * 77
    assert len(set(seen[:77])) == 77
    assert seen[0] == tuple(known[0].tolist())
    best = [value for _, value in runs[0].history]
    assert best == sorted(best, reverse=True)
    assert runs[0].fitness == best[-1] <= fitness_of(1)(known[0], None)


def test_masks_have_their_number_of_blocks_and_the_best_ones_are_found():
    wanted = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()

    def fitness(times, mask):
        assert mask.shape == (2, 3)
        assert int(mask.sum()) == 3
        return float((mask != wanted).sum()) + abs(float(times[1]) - 0.5)

    method = Evolution(budget=200, population=30, mutations=15, crossovers=10)
    found = method.search(Problem(line(), 2, fitness, blocks=3, keep=3))
    assert found.mask == tuple(map(tuple, wanted.tolist()))
    assert found.times == (1.0, 0.5, 0.0)


def test_children_are_always_grids():
    problem = Problem(line(), 6, fitness_of(0), blocks=2, keep=5)
    breeder = Breeder(problem, random.Random(0), 0.5)
    parents = [breeder.random() for _ in range(5)]
    for _ in range(200):
        child = breeder.cross(breeder.mutate(breeder.pick(parents)), breeder.pick(parents))
        assert child.indices[0] == 0
        assert child.indices[-1] == 12
        assert sorted(set(child.indices)) == list(child.indices)
        assert len(child.indices) == 7
        assert sum(child.mask) == 5
        parents = [child, *parents[:4]]


def test_a_fitness_that_is_no_number_loses():
    found = Evolution(budget=30).search(
        Problem(line(), 3, lambda times, mask: float("nan") if times[1] > 0.5 else float(times[1]))
    )
    assert found.times[1] <= 0.5


# On the exact mixture


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "solver", "steps"), [(Flow(), "euler", 5), (Flow(), "dpmpp", 4), (EDM(), "dpmpp", 6)], ids=repr
)
def test_the_searched_grid_beats_the_usual_ones_on_fresh_noise(path, solver, steps):
    solver, known = build("samplers.solvers", solver), usual(path, steps)
    pool = pool_of([*known, *usual(path, 24)])
    world = reference(path, pool, solver, 512)
    found = Evolution(budget=250).search(Problem(pool, steps, world.fitness, known))
    fresh = reference(path, pool, solver, 512, seed=1)
    errors = [fresh.fitness(times) for times in known]
    assert fresh.fitness(f64(*found.times)) < 0.97 * min(errors)


def test_few_fine_steps_are_a_reference():
    """The end of the traced trajectory is where ten times as many steps end, far within what grids differ by."""
    pool, f = pool_of([*usual(Flow(), 5), *usual(Flow(), 24)]), mixture(Flow())
    world = reference(Flow(), pool, Euler(), 64)
    fine = ReferenceTrajectory.trace(lambda times: f, world.points[0], pool, None, fine=20)[-1]
    assert float((world.points[-1] - fine).square().mean().sqrt()) < 0.01
    assert world.fitness(usual(Flow(), 5)[0]) > 0.1


# What is found


def test_what_is_found_is_read_by_the_grid_and_by_the_cache(tmp_path):
    file = tmp_path / "grid.json"
    problem = Problem(line(), 3, fitness_of(0), blocks=2, keep=4)
    found = Evolution(budget=40).search(problem)
    found.write(file, path=spec_of(Flow()), solver=spec_of(Euler()), sites=["blocks.0", "blocks.1"])
    assert torch.equal(Searched(str(file)).times(Flow(), 3), f64(*found.times))
    run = SearchedMask(str(file)).start(3)
    assert run.mask == found.mask
    content = json.loads(file.read_text())
    assert content["fitness"] == found.fitness
    assert content["evaluations"] == 40
    assert content["history"][-1] == [40, found.fitness]
    for text, message in (("{}", "holds no searched mask"), ("x", "is no JSON")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            SearchedMask(str(file)).start(3)
    with pytest.raises(UserError, match="does not exist"):
        SearchedMask(str(tmp_path / "none.json")).start(3)


@pytest.mark.parametrize(
    ("mask", "sites"), [([[1, 0]], ["a", "b"]), ([["false", True]], ["a", "b"]), ([[True, False]], ["a", 2])]
)
def test_a_mask_is_of_booleans_and_sites_are_names(tmp_path, mask, sites):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"mask": mask, "sites": sites}))
    with pytest.raises(UserError, match="true and false only"):
        SearchedMask(str(file)).start(1)


def test_a_mask_of_sites_that_the_network_lacks_is_refused():
    net, indices = Toy(), contexts(2)
    x = torch.ones(2, 1, dtype=torch.float64)
    run = SkipSession(((True, False), (True, True)), ("blocks.0", "layers.1"))
    with pytest.raises(UserError, match=r"no site layers\.1; it has trunk, hidden\.0"):
        walk(net, run, indices, x)
    run = SkipSession(((False, False),), ("blocks.0", "layers.1"))
    walk(net, run, contexts(1), x, ("main",))
    with pytest.raises(UserError, match=r"no site layers\.1"):
        run.report()
    run = SkipSession(((False, False),), ("blocks.0", "blocks.1"))
    walk(net, run, contexts(1), x, ("main",))
    assert run.report().computed == ((False, False),)


def test_a_mask_is_for_its_number_of_steps(tmp_path):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"mask": [[True, False]], "sites": ["blocks.0", "blocks.1"]}))
    with pytest.raises(UserError, match="a mask of 1 steps of 2 blocks, not of 3 steps"):
        SearchedMask(str(file)).start(3)


@torch.no_grad()
def test_a_mask_leaves_blocks_out_where_it_says_and_reports_it():
    net = DiT(size=8, patch=4, channels=1, classes=0, width=16, depth=2, heads=2).build()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    run = SkipSession(((True, True), (True, False)), ("blocks.0", "blocks.1"))
    assert isinstance(run, ContextualTap)
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    whole = net(x, t, {}, tap=run.bind(Context(0, 2, 0, 0.5)))
    part = net(x, t, {}, tap=run.bind(Context(1, 2, 0, 0.5)))
    assert torch.equal(whole, net(x, t, {}))
    record = FeatureRecorder(("hidden.*",))
    net(x, t, {}, tap=record)
    tokens = record.features["hidden.0"]
    c = net.t_embedder(t)
    torch.testing.assert_close(part, net.head(tokens, c))
    report = run.report()
    assert report.computed == ((True, True), (True, False))
    assert (report.full, report.hits, report.evaluations) == (1, 1, 2)


# Wrong input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem(line().flip(0), 3, fitness_of(0)), "not a row of falling times"),
        (lambda: Problem(line(4), 4, fitness_of(0)), "4 steps need a pool of at least 5 times"),
        (lambda: Problem(line(), 2, fitness_of(0), blocks=3, keep=7), "allowed: 1 .. 2 steps x 3 blocks"),
        (lambda: Problem(line(), 4, fitness_of(0)).indices(line(4)), "is not 4 steps between pool times"),
        (lambda: Evolution(budget=0), "budget = 0"),
        (lambda: Evolution(rate=0), "rate = 0"),
        (lambda: Evolution(population=10), "add up to at most population = 10"),
        (lambda: Dynamic().search(Problem(line(), 4, fitness_of(0))), "this fitness has none: use evolution"),
        (
            lambda: Dynamic().search(Problem(line(), 4, fitness_of(0), costs=lambda: table(13, 0), blocks=1, keep=4)),
            "use evolution for masks",
        ),
    ],
)
def test_wrong_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_pool_holds_each_time_once():
    pool = pool_of([f64(1, 0.5, 0), f64(2, 0.5 + 1e-12, 0.25, 0)])
    assert pool.tolist() == pytest.approx([1, 0.5, 0.25, 0], abs=1e-9)
    assert pool[-1] == 0
    assert Candidate((0, 3)).mask == ()
