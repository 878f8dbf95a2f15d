"""Every guide against its published formula, on a mixture whose conditional and unconditional answers are known."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, name_of, names, spec_of
from gen.diffusion.composition import compose
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import X0, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import BoundTap, Chain, Context
from gen.diffusion.worlds import Mixture
from gen.pipeline import Pipeline
from gen.samplers.caches.searched import SkipSession
from gen.samplers.grids.karras import Karras
from gen.samplers.grids.linear import Linear
from gen.samplers.guides.apg import APG
from gen.samplers.guides.auto import Autoguidance
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.cfg_zero import CFGZero
from gen.samplers.guides.cfgpp import CFGpp
from gen.samplers.guides.rescale import Rescale
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun

PATHS = [Flow(), EDM(), Trig(), VP(), DDPM()]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def world(path, off=0.0):
    """Two classes in four dimensions, close enough that the class matters at every level; `off` makes it wrong."""
    means = f64([1.0, 0.2, -0.5, 0.3], [-0.8, 0.1, 0.6, -0.2]) + off
    return Mixture(path, means, f64(0.6, 0.5), f64(0.5, 0.5), torch.tensor([0, 1]))


def ask(path, part=0.5, n=5):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = f64(part * path.t1)[0]
    return x * (path.alpha(t) ** 2 + path.sigma(t) ** 2).sqrt(), t, {"y": torch.arange(n) % 2}


def grid(path, steps=10):
    return torch.linspace(path.t1, 0, steps + 1, dtype=torch.float64)


def answers(path, guide, part=0.5):
    """c, u and the guided prediction at one point."""
    f, (x, t, cond) = world(path), ask(path, part)
    return f(x, t, cond), f(x, t), guide(f, grid(path))(x, t, cond), x, t


def same(ours, exact, tol=1e-12):
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# Steps and channels


def test_an_interval_in_steps_counts_like_diffusers_and_a_sampler_saves_the_evaluations():
    f, (x, _, cond) = world(Flow()), ask(Flow())
    for bounds, guided in (((0.0, 1.0), 10), ((0.3, 0.7), 4), ((0.0, 0.25), 2), ((0.95, 1.0), 1), ((0.0, 0.05), 0)):
        counted = CountingDenoiser(f)
        integrate(CFG(3.0, steps=bounds)(counted, grid(Flow())), x, grid(Flow()), Euler(), cond=cond)
        assert counted.calls == 10 + guided, bounds


def test_the_published_interval_is_the_same_in_steps_and_in_levels():
    """Kynkaanniemi et al. 2024: steps 17 to 22 of the 32 of EDM2's grid are the levels in (0.19, 1.61]."""
    path, f = EDM(), world(EDM())
    times, (x, _, cond) = Karras().times(path, 32), ask(path, 1.0)
    steps, interval = CFG(2.0, steps=(17 / 32, 23 / 32)), CFG(2.0, interval=(0.19, 1.62))
    assert [i for i in range(32) if steps.active(path, times[i], times)] == list(range(17, 23))
    assert [i for i in range(32) if interval.active(path, times[i], times)] == list(range(17, 23))
    ends = [integrate(g(f, times), x, times, Heun(), cond=cond) for g in (steps, interval)]
    assert torch.equal(*ends)  # Heun's later stages too: both speak of the time of an evaluation


def test_a_step_begins_at_its_time_even_if_rounding_moved_it():
    guide, times = CFG(3.0, steps=(0.3, 0.7)), grid(Flow())
    for t, on in ((times[3], True), (times[3] * (1 + 1e-14), True), (times[7], False), (times[7] * (1 + 1e-14), False)):
        assert bool(guide.active(Flow(), t, times)) == on
    assert bool(CFG(steps=(0.0, 0.5)).active(Flow(), times[0] * 1.2, times))  # churned above the first time


def test_published_dit_guides_three_channels_of_four():
    c, u, got, _, _ = answers(Flow(), CFG(4.0, channels=3))
    torch.testing.assert_close(got.eps, torch.cat([(u.eps + 4 * (c.eps - u.eps))[:, :3], c.eps[:, 3:]], 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFG(steps=(0.5, 0.5)), "0 <= start < stop <= 1"),
        (lambda: CFG(steps=(0.5, 1.5)), "0 <= start < stop <= 1"),
        (lambda: APG(interval=(0.1, 1.0), steps=(0.0, 0.5)), "give one of the two"),
        (lambda: Rescale(channels=0), r"channels = 0; it must be in \[1, inf\)"),
        (lambda: Rescale(phi=1.5), "phi = 1.5"),
        (lambda: APG(momentum=1.0), "momentum = 1.0"),
        (lambda: APG(threshold=0.0), "threshold = 0.0"),
        (lambda: CFGZero(zero_steps=-1), "zero_steps = -1"),
        (lambda: CFGZero(zero_steps=10).grid(grid(Flow())), "nothing would move"),
        (lambda: build("samplers.guides", "auto"), "Autoguidance needs weak"),
        (lambda: Autoguidance(weak=world(EDM()))(world(Flow()), grid(Flow())), "they must agree"),
        (lambda: CFGpp()(world(Flow()), grid(Flow()))(*ask(Flow())[:2]), "CFGpp needs a condition"),
    ],
)
def test_wrong_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# Rescale


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("space", [V(), X0(), Eps(), Velocity()], ids=repr)
def test_rescale_keeps_the_standard_deviation_of_the_conditional_prediction(path, space):
    c, _, got, _, t = answers(path, Rescale(6.0, phi=1.0, space=space))
    std = [space.target(path, *p, t).std(1) for p in (c, got)]
    torch.testing.assert_close(std[1], std[0], rtol=1e-11, atol=0)
    half = answers(path, Rescale(6.0, phi=0.5, space=space))[2]
    plain = answers(path, CFG(6.0))[2]
    same(half, [(a + b) / 2 for a, b in zip(got, plain, strict=True)], 1e-11)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_without_phi_rescale_is_plain_guidance(path):
    same(answers(path, Rescale(4.0, phi=0.0))[2], answers(path, CFG(4.0))[2])


# APG


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_apg_without_its_parts_is_plain_guidance(path):
    f, (x, _, cond) = world(path), ask(path, 1.0)
    times = grid(path)
    ends = [
        integrate(guide(f, times), x, times, Euler(), cond=cond)
        for guide in (APG(4.0, momentum=0.0, threshold=None, eta=1.0), CFG(4.0))
    ]
    torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-11)


def test_apg_adds_nothing_along_the_prediction_and_no_more_than_its_threshold():
    c, _, got, _, _ = answers(Flow(), APG(5.0, threshold=0.1, eta=0.0))
    added = got.x0 - c.x0
    assert float((added * c.x0).sum(1).abs().max()) < 1e-14
    assert float(added.norm(dim=1).max()) <= 4 * 0.1
    c, u, got, _, _ = answers(Flow(), APG(5.0, threshold=0.1, eta=1.0))
    torch.testing.assert_close((got.x0 - c.x0).norm(dim=1), 4 * (c.x0 - u.x0).norm(dim=1).clamp(max=0.1))


def test_the_momentum_is_that_of_one_walk():
    """The difference of evaluation k is sum_j momentum^j d_(k - j); the grid's first time starts anew."""
    f, times, (x, _, cond) = world(Flow()), grid(Flow()), ask(Flow())
    guide = APG(3.0, momentum=-0.5, threshold=None, eta=1.0)
    walk, total = guide(f, times), 0.0
    for t in times[:3]:
        c, u = f(x, t, cond).x0, f(x, t).x0
        total = c - u - 0.5 * total
        torch.testing.assert_close(walk(x, t, cond).x0, c + 2 * total)
    again = integrate(walk, x, times, Euler(), cond=cond)
    assert torch.equal(again, integrate(guide(f, times), x, times, Euler(), cond=cond))
    other = guide(f, times)
    other(x + 1, times[4], cond)
    assert torch.equal(walk(x, times[0], cond).x0, other(x, times[0], cond).x0)


# Autoguidance


def test_autoguidance_is_weak_plus_scale_times_the_difference():
    f, weak, (x, t, cond) = world(Flow()), world(Flow(), 0.3), ask(Flow())
    got = Autoguidance(3.0, weak=weak)(f, grid(Flow()))(x, t, cond)
    strong, poor = f(x, t, cond), weak(x, t, cond)
    same(got, [w + 3 * (d - w) for d, w in zip(strong, poor, strict=True)])
    same(Autoguidance(0.0, weak=weak)(f, grid(Flow()))(x, t, cond), poor)
    assert Autoguidance(3.0, weak=weak)(f, grid(Flow()))(x, t).x0.shape == x.shape  # needs no condition


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guided_by_itself_a_model_stays_what_it_is(scale):
    f, (x, t, cond) = world(Flow()), ask(Flow())
    same(Autoguidance(scale, weak=f)(f, grid(Flow()))(x, t, cond), f(x, t, cond))


def test_evaluations_of_the_weak_network_are_counted():
    x, t, cond = ask(Flow())
    loop = compose(world(Flow()), grid(Flow()), Euler(), Autoguidance(3.0, weak=world(Flow())), cond, x)
    loop.f(x, t, cond)
    assert loop.rows == 10 and [counter.calls for counter in loop.counters] == [1, 1]


def test_the_weak_model_may_be_a_run_folder(tmp_path):
    from gen.pipeline import load
    from gen.training.trainer import train
    from tests.gen.tiny import tiny

    train(tiny(steps=2), tmp_path / "run")
    pipeline = load(tmp_path / "run")
    guide = build("samplers.guides", {"name": "auto", "weak": str(tmp_path / "run"), "scale": 3.0})
    assert build("samplers.guides", spec_of(guide)) == guide
    plain, guided = (pipeline.sample(4, steps=2, guide=g) for g in (None, guide))
    assert (plain.nfe, guided.nfe) == (2, 4)
    torch.testing.assert_close(guided.x, plain.x)


# CFG++


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_cfgpp_is_a_guided_x0_noised_with_the_unconditional_eps(path):
    c, u, got, _, _ = answers(path, CFGpp(0.4))
    same(got, (u.x0 + 0.4 * (c.x0 - u.x0), u.eps))


@pytest.mark.parametrize("path", [Flow(), EDM(), DDPM()], ids=repr)
@pytest.mark.parametrize("solver", names("samplers.solvers"))
def test_cfgpp_at_0_samples_the_unconditional_model_by_every_solver(path, solver):
    f, (x, _, cond), times = world(path), ask(path, 1.0), grid(path)
    solver, noise = build("samplers.solvers", solver), Noise(tuple(range(5)))
    ends = [
        integrate(CFGpp(0.0)(f, times), x, times, solver, cond=cond, noise=noise),
        integrate(f, x, times, solver, noise=noise),
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", names("samplers.solvers"))
def test_a_pair_goes_through_every_solver(name):
    """A little of CFG++ changes the walk a little, and, where eps is used at all, not as plain guidance does."""
    f, (x, _, cond), times = world(Flow()), ask(Flow(), 1.0), Linear(0.99).times(Flow(), 10)
    solver, noise = build("samplers.solvers", name), Noise(tuple(range(5)))

    def end(guide):
        return integrate(guide(f, times), x, times, solver, cond=cond, noise=noise)

    base = end(CFGpp(0.0))
    slopes = [(end(CFGpp(h)) - base) / h for h in (1e-3, 1e-4)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0.1, atol=0.02)
    assert float(slopes[1].abs().max()) > 0.05
    of_x0_alone = name in ("renoise", "fixed_noise")
    assert torch.allclose(end(CFGpp(0.5)), end(CFG(0.5)), atol=1e-2) == of_x0_alone


def test_the_first_order_walk_is_the_published_one():
    """x' = D_guided + (s / t) (x - D_u) on the variance exploding path (CFG++ in its repository's Euler)."""
    path = EDM()
    f, times, (x, _, cond) = world(path), Karras().times(EDM(), 8), ask(EDM(), 1.0)
    ours = integrate(CFGpp(0.6)(f, times), x, times, build("samplers.solvers", "euler"), cond=cond)
    for t, s in itertools.pairwise(times):
        c, u = f(x, t, cond).x0, f(x, t).x0
        x = u + 0.6 * (c - u) + s / t * (x - u)
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


# CFG-Zero*


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_cfg_zero_is_the_published_rule_for_velocities(path):
    c, u, got, _, t = answers(path, CFGZero(4.0))
    v, base, ours = (path.velocity(p, t) for p in (c, u, got))
    base = (v * base).sum(1, keepdim=True) / (base**2).sum(1, keepdim=True) * base
    torch.testing.assert_close(ours, base + 4 * (v - base), rtol=1e-10, atol=1e-10)
    rest = ours - v  # the optimal share leaves a rest that is orthogonal to u
    torch.testing.assert_close((rest * base).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", [Flow(), VP()], ids=repr)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp", "unipc", "flow_adams"])
def test_the_first_steps_stand_still_for_every_solver_and_cost_nothing(path, solver):
    """A pipeline's loop is the later part of its grid, from the start noise of the whole of it."""
    guide, times, solver = CFGZero(3.0, zero_steps=2), grid(path), build("samplers.solvers", solver)
    pipeline = Pipeline(Tapping(world(path)), (4,), 2)
    got = pipeline.sample(5, solver=solver, steps=10, grid=Linear(), guide=guide, cache=Watch(seen := []))
    x = path.start(Noise(tuple(sample_seeds(0, 5))).normal("start", (4,)), times[0])
    later = integrate(guide(world(path), times), x, times[2:], solver, cond=got.cond)
    torch.testing.assert_close(got.x, later.float(), rtol=1e-6, atol=1e-6)
    assert got.nfe == 2 * solver.nfe(8)
    assert seen == [8]


@dataclasses.dataclass(frozen=True, eq=False)
class Tapping:
    """A world with one site."""

    inner: Mixture
    path = property(lambda self: self.inner.path)

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return self.inner(x if tap is None else tap("final", lambda h: h, x), t, cond)

    def null(self, cond):
        return self.inner.null(cond)


class Watch:
    """A cache that records how many steps there are, and computes all."""

    def __init__(self, seen):
        self.seen = seen

    def start(self, steps):
        self.seen.append(steps)
        return SkipSession(((),) * steps, ())


@pytest.mark.parametrize(("guide", "space"), [(CFGZero, V()), (Rescale, X0())])
def test_a_space_may_be_a_name(guide, space):
    assert guide(space=name_of(type(space))) == guide(space=space)


def test_a_network_that_says_zero_does_no_harm():
    """As a freshly made one does: norms of zero divide nothing."""

    class Zero:
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            return Velocity().solve(self.path, x, torch.zeros_like(x), t)

        def null(self, cond):
            return cond

    x, t, cond = ask(Flow())
    for guide in (CFGZero(3.0), APG(3.0), Rescale(3.0, space=Velocity())):
        got = guide(Zero(), grid(Flow()))(x, t, cond)
        same(got, (x, x))


# All of them: branches


@pytest.mark.parametrize(
    ("guide", "name"),
    [
        (CFG(3.0), "uncond"),
        (APG(3.0), "uncond"),
        (CFGpp(0.5), "uncond"),
        (Autoguidance(3.0, weak=world(Flow())), "weak"),
    ],
    ids=["cfg", "apg", "cfgpp", "auto"],
)
def test_the_second_call_has_its_own_branch(guide, name):
    """So that a cache keeps what it remembers of the two apart."""
    seen = []

    @dataclasses.dataclass(frozen=True, eq=False)
    class Watched:
        inner: Mixture
        path = Flow()

        def __call__(self, x, t, cond=None, *, s=None, tap=None):
            seen.append(tap.context.branch)
            return self.inner(x, t, cond)

        def null(self, cond):
            return self.inner.null(cond)

    class Nowhere:
        def bind(self, context):
            return Chain(())

    watched = Watched(world(Flow()))
    guide = dataclasses.replace(guide, weak=watched) if name == "weak" else guide
    x, t, cond = ask(Flow())
    guide(watched, grid(Flow()))(x, t, cond, tap=BoundTap(Nowhere(), Context(0, 10, 0, 0.5)))
    assert sorted(seen) == sorted(["main", name])


# diffusers


def guider(name, **settings):
    from diffusers import guiders

    return getattr(guiders, name)(**settings)


def test_diffusers_agrees_on_plain_guidance_and_on_rescale():
    c, u, got, _, _ = answers(Flow(), CFG(4.0))
    torch.testing.assert_close(guider("ClassifierFreeGuidance", guidance_scale=4.0).forward(c.eps, u.eps).pred, got.eps)
    got = answers(Flow(), Rescale(4.0, phi=0.7, space=Eps()))[2]
    theirs = guider("ClassifierFreeGuidance", guidance_scale=4.0, guidance_rescale=0.7).forward(c.eps, u.eps).pred
    torch.testing.assert_close(theirs, got.eps, rtol=1e-12, atol=1e-12)


def test_diffusers_agrees_on_apg_in_its_original_formulation():
    """With its scale one less. Its default adds scale d to u, which is not the paper's rule: off by d - (c - u)."""
    settings = {"adaptive_projected_guidance_rescale": 0.2, "eta": 0.3}
    c, u, got, _, _ = answers(Flow(), APG(4.0, momentum=0.0, threshold=0.2, eta=0.3))
    name = "AdaptiveProjectedGuidance"
    theirs = guider(name, guidance_scale=3.0, use_original_formulation=True, **settings).forward(c.x0, u.x0).pred
    torch.testing.assert_close(theirs, got.x0, rtol=1e-12, atol=1e-12)
    default = guider(name, guidance_scale=4.0, **settings).forward(c.x0, u.x0).pred
    d = (got.x0 - c.x0) / 3
    torch.testing.assert_close(default - got.x0, d - (c.x0 - u.x0), rtol=1e-10, atol=1e-12)


def test_diffusers_agrees_on_cfg_zero_and_on_its_first_step():
    c, u, got, _, t = answers(Flow(), CFGZero(4.0))
    v, base = (Flow().velocity(p, t) for p in (c, u))
    theirs = guider("ClassifierFreeZeroStarGuidance", guidance_scale=4.0, zero_init_steps=1)
    theirs.set_state(1, 10, None)
    torch.testing.assert_close(theirs.forward(v, base).pred, Flow().velocity(got, t), rtol=1e-5, atol=1e-6)
    theirs.set_state(0, 10, None)
    assert not theirs.forward(v, base).pred.any()


@pytest.mark.parametrize("bounds", [(0.3, 0.7), (0.29, 0.58), (0.0, 0.25)])
def test_diffusers_guides_the_same_steps(bounds):
    theirs = guider("ClassifierFreeGuidance", guidance_scale=4.0, start=bounds[0], stop=bounds[1])
    ours, times = CFG(4.0, steps=bounds), grid(Flow(), 20)
    for i in range(20):
        theirs.set_state(i, 20, None)
        assert (theirs.num_conditions == 2) == bool(ours.active(Flow(), times[i], times)), i


@pytest.mark.parametrize("t_per_sample", [False, True])
@pytest.mark.parametrize("name", ["cfg", "cfgpp", "rescale", "apg", "cfg_zero"])
def test_both_predictions_may_come_from_one_call(name, t_per_sample):
    path = Flow()
    x, t, cond = ask(path)
    t = t.expand(len(x)) if t_per_sample else t
    spec = {"name": name, "scale": 2.0}
    apart, together = (build("samplers.guides", {**spec, "batched": flag}) for flag in (False, True))
    counts = [CountingDenoiser(world(path)) for _ in range(2)]
    one, two = (g(c, grid(path))(x, t, cond) for g, c in zip((apart, together), counts, strict=True))
    torch.testing.assert_close(one.x0, two.x0, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(one.eps, two.eps, rtol=1e-13, atol=1e-13)
    assert [(c.calls, c.rows) for c in counts] == [(2, 10), (1, 10)]


def test_autoguidance_has_two_networks_and_so_two_calls():
    with pytest.raises(UserError, match="its two predictions come from two networks"):
        Autoguidance(2.0, weak=world(Flow(), 0.3), batched=True)
