"""What a run does between a network and a loop, against the published codes written out by hand."""

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import V
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import BoundTap, Context
from gen.samplers.caches.coordinates.lam import Lam
from gen.samplers.caches.coordinates.t import T
from gen.samplers.caches.custom import Custom
from gen.samplers.caches.fbcache import FBCache
from gen.samplers.caches.lib.session import SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.newton import Newton
from gen.samplers.caches.predictors.reuse import Reuse
from gen.samplers.caches.taylorseer import TaylorSeer
from gen.samplers.caches.taylorseer_lite import TaylorSeerLite
from gen.samplers.caches.uncond import Uncond
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun
from tests.samplers.caches.toy import Toy, contexts, random_dit, walk

ONES, EULER = torch.ones(2, 1, dtype=torch.float64), Euler()


def sampled(tap, solver=EULER, steps=12, guide=None, n=3):
    """Samples of the small DiT in float64; `tap` a run, a tap, or None."""
    noise = Noise(tuple(sample_seeds(0, n)))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    f = Denoiser(random_dit(torch.float64), Flow(), V())
    f = f if guide is None else guide(f, times)
    x, cond = noise.normal("start", (1, 8, 8)).double(), {"y": noise.integers("y", 3)}
    return integrate(f, x, times, solver, cond=cond, tap=tap)


class Published:
    """TaylorSeer as its code has it: dictionaries by module, and a counter of steps that runs down."""

    def __init__(self, steps, interval, order, first):
        self.steps, self.interval, self.order, self.first = steps, interval, order, first
        self.step, self.counter, self.activated, self.cache, self.full = steps, 0, [], {}, True

    def __call__(self, site, compute, h):
        if site == "trunk":  # a new evaluation
            self.step -= 1
            self.full = self.step > self.steps - self.first - 1 or self.counter == self.interval - 1
            self.counter = 0 if self.full else self.counter + 1
            self.activated += [self.step] if self.full else []
        if not site.endswith(".raw"):
            return compute(h)
        if self.full:
            feature, old, difference_table = compute(h), self.cache.get(site, {}), {}
            difference_table[0] = feature
            for i in range(self.order):
                if i not in old or self.step >= self.steps - self.first + 1:
                    break
                difference_table[i + 1] = (difference_table[i] - old[i]) / (self.activated[-1] - self.activated[-2])
            self.cache[site] = difference_table
            return feature
        x = self.step - self.activated[-1]
        return sum(f * x**i / math.factorial(i) for i, f in self.cache[site].items())


@pytest.mark.parametrize(("interval", "order", "warmup"), [(3, 1, 2), (4, 4, 2), (5, 2, 3), (2, 3, 4), (4, 4, 1)])
def test_taylorseer_is_the_published_one(interval, order, warmup):
    published = Published(20, interval, order, warmup)
    run = TaylorSeer(interval, order, warmup).start(20)
    ours = sampled(run, steps=20)
    torch.testing.assert_close(ours, sampled(published, steps=20), rtol=1e-9, atol=1e-9)
    assert run.report().full == len(published.activated) < 20
    assert (ours - sampled(None, steps=20)).abs().max() > 1e-6


class FirstBlock:
    """FBCache by hand, for one row: the first block's residual decides whether the rest's is used again."""

    def __init__(self, threshold):
        self.threshold, self.first, self.rest, self.full = threshold, None, None, 0

    def __call__(self, site, compute, h):
        if site == "hidden.0":
            self.out = compute(h)
            added = self.out - h
            change = 9.0 if self.first is None else float((added - self.first).abs().mean() / self.first.abs().mean())
            self.compute = change >= self.threshold
            self.first = added if self.compute else self.first
            return self.out
        if site != "trunk":
            return compute(h)
        out = compute(h)  # computes all, uses what it should
        self.full += self.compute
        self.rest = out - self.out if self.compute else self.rest
        return self.out + self.rest


def test_fbcache_is_the_published_one():
    by_hand, run = FirstBlock(0.1), FBCache(threshold=0.1).start(20)
    torch.testing.assert_close(sampled(run, steps=20, n=1), sampled(by_hand, steps=20, n=1), rtol=1e-9, atol=1e-9)
    assert 1 < by_hand.full < 20
    assert run.report().full == by_hand.full


def test_lite_runs_no_block_on_a_skipped_step():
    run = TaylorSeerLite(interval=4).start(12)
    sampled(run)
    report = run.report()
    assert [context.step for context, share in zip(report.contexts, report.share_needed, strict=True) if share] == [
        0,
        1,
        5,
        9,
    ]
    for place, row in zip(report.contexts, report.computed, strict=True):
        done = {site for site, yes in zip(report.sites, row, strict=True) if yes}
        assert done == (set(report.sites) if place.step in (0, 1, 5, 9) else {"time", "final"})
    assert report.hits == 8 * (len(report.sites) - 2)
    assert report.fraction == report.fraction_per_row == 4 / 12


def test_stages_have_a_memory_each():
    """Two stages whose features have nothing to do with each other; each is affine in the step."""
    net, steps = Toy(1), 10
    places = [
        Context(i, steps, stage, t) for i in range(steps) for stage, t in ((0, 1 - i / steps), (1, 5 + i / steps))
    ]
    run = TaylorSeer(interval=3).start(steps)
    torch.testing.assert_close(walk(net, run, places, ONES), walk(net, None, places, ONES), rtol=1e-11, atol=1e-11)
    assert run.report().full == 2 * 2 * 4


def test_heun_under_a_cache_stays_near_the_truth():
    """Its last step has no second stage; the order in which evaluations come must not matter to the cache."""
    exact, run = sampled(None, Heun(), 24), TaylorSeerLite(interval=2, order=1).start(24)
    got = sampled(run, Heun(), 24)
    assert run.report().evaluations == 47
    assert 0 < (got - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_branch_that_misses_steps_extrapolates_from_its_own():
    net, steps = Toy(1), 16
    run, places = TaylorSeer(interval=4).start(steps), contexts(steps)
    both = [p for p in places if p.step < 4 or p.step > 10]
    for place in places:
        branches = ("main", "uncond") if place in both else ("main",)
        got, exact = walk(net, run, [place], ONES, branches), walk(net, None, [place], ONES, branches)
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-11)
    full = [
        p.step
        for p, share in zip(run.report().contexts, run.report().share_needed, strict=True)
        if share and p.branch != "main"
    ]
    assert full == [0, 1, 11, 15]  # 11 is the first after a gap longer than the interval


def test_guidance_that_comes_and_goes_costs_what_the_report_says():
    run = TaylorSeerLite(interval=3).start(12)
    sampled(run, guide=CFG(2.0, interval=(0.2, 3.0)))
    report = run.report()
    by_branch = {name: sum(p.branch == name for p in report.contexts) for name in ("main", "uncond")}
    assert by_branch["main"] == 12
    assert 0 < by_branch["uncond"] < 12


def test_only_the_unconditional_branch():
    run = Uncond(interval=3).start(12)
    got = sampled(run, guide=CFG(2.0))
    report = run.report()
    for place, share in zip(report.contexts, report.share_needed, strict=True):
        assert share == (place.branch == "main" or place.step in (0, 1, 4, 7, 10))
    exact = sampled(None, guide=CFG(2.0))
    assert 0 < (got - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("coordinate", [T(), Lam()])
def test_uneven_steps_are_even_along_another_coordinate(coordinate):
    """Affine in t or in lam on a grid that the index cannot see through."""
    times = [0.9, 0.85, 0.7, 0.66, 0.5, 0.3, 0.28, 0.2, 0.11, 0.05]
    places = contexts(10, times)
    net = Toy(1)
    seen = [
        Context(p.step, p.steps, p.stage, coordinate.value(p)) for p in places
    ]  # the network sees the coordinate as t

    def drift(coordinate):
        run, out = SiteCacheSession(10, Interval(3, 2), Newton(1), ("hidden.*",), coordinate=coordinate), []
        for place, context in zip(seen, places, strict=True):
            y = torch.zeros(2, dtype=torch.int64)
            t = torch.full((2,), place.t, dtype=torch.float64)
            out.append(net(ONES, t, {"y": y}, tap=BoundTap(run, context)) - net(ONES, t, {"y": y}))
        return float(torch.stack(out).abs().max())

    assert drift(coordinate) < 1e-11
    assert drift(Custom().coordinate) > 0.1


def test_lam_is_finite_and_falls_from_end_to_end():
    lams = [float(Flow().lam(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 1e-6, 0.01, 0.5, 0.99, 1.0)]
    values = [Lam().value(Context(0, 1, 0, 0.5, lam=lam)) for lam in lams]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 6
    assert (values[0], values[3], values[-1]) == (8.0, 0.0, -8.0)
    with pytest.raises(UserError, match="does not say the log-SNR"):
        Lam().value(Context(0, 1, 0, 0.5))


def test_block_outputs_and_gated_modules_are_sites_too():
    exact = sampled(None, steps=24)
    for sites, subtract in (
        (("hidden.*",), "none"),
        (("hidden.*",), "input"),
        (("blocks.*.attn", "blocks.*.mlp"), "none"),
    ):
        run = Custom(policy=Interval(2, 2), sites=sites, subtract=subtract).start(24)
        got = sampled(run, steps=24)
        assert 0 < (got - exact).abs().max() < 0.02 * exact.abs().max()
        assert run.report().full == 13


def test_inside_a_cached_site_nothing_else_is_cached():
    run = Custom(sites=("*",)).start(12)
    sampled(run)
    assert {site for _, _, site in run.memories} == {"time", "trunk", "final"}
    assert run.report().memory == sum(m.bytes for m in run.memories.values()) > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="started for 5 steps, but the loop has 12"):
        sampled(TaylorSeer().start(5))
    with pytest.raises(UserError, match=r"no site of this network matches 'layers\.\*'; it has time, trunk"):
        sampled(Custom(sites=("layers.*",)).start(12))
    with pytest.raises(UserError, match=r"no site of this network matches 'hidden\.\*'; it has none"):
        Custom().start(1).report()
    run = Custom(sites=("layers.*",)).start(1)
    sampled(run, steps=1)
    with pytest.raises(UserError, match=r"no site of this network matches 'layers\.\*'; it has time, trunk"):
        run.report()
    with pytest.raises(UserError, match=r"no site of this network matches 'stem'"):
        sampled(FBCache(first="stem").start(12))
    with pytest.raises(UserError, match=r"compares 'final', \[3, 1, 8, 8\], with 'hidden\.0', \[3, \d+, \d+\]"):
        sampled(FBCache(sites=("final",)).start(12))
    with pytest.raises(UserError, match="needs a policy with a probe"):
        Custom(subtract="probe")
    with pytest.raises(UserError, match="at least one pattern"):
        Custom(sites=())
    with pytest.raises(UserError, match="the same coordinate"):
        walk(
            Toy(1),
            SiteCacheSession(3, Interval(1), Reuse(), ("trunk",), coordinate=T()),
            contexts(3, [1.0, 0.5, 0.5]),
            ONES,
        )
