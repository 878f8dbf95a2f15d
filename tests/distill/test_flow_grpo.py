"""Flow-GRPO: the law of its steps, the ratio before an update, and a pull to the reference that has a gradient."""

import itertools
from dataclasses import replace

import pytest
import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import VP, Flow, Prediction
from gen.diffusion.worlds import Gaussian
from gen.distillers.flow_grpo import FlowGRPO
from gen.distillers.lib.policy import sde_rollout, sde_transition
from gen.distillers.rewards.quadratic import Quadratic
from tests.distill.policies import MEAN, STD, batch, fit_policy, policy


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_step_is_the_published_one():
    """x (1 + g^2 dt / 2t) + v (1 + g^2 (1 - t) / 2t) dt, g = .7 sqrt(t / (1 - t)); at t = 1 with 1 - s below."""
    x, v = f64([0.3, -1.2]), f64([0.9, 0.4])
    for t, s, near in ((0.6, 0.5, 0.6), (1.0, 0.9, 0.9)):
        g, dt = 0.7 * (t / (1 - near)) ** 0.5, s - t
        pred = Prediction(x - t * v, x + (1 - t) * v)
        step = sde_transition(Flow(), x, pred, f64(t)[0], f64(s)[0], 0.7, f64(0.9)[0])
        mean = x * (1 + g**2 * dt / (2 * t)) + v * (1 + g**2 * (1 - t) / (2 * t)) * dt
        assert torch.allclose(step.mean, mean, rtol=1e-12)
        assert float(step.std) == pytest.approx(g * (-dt) ** 0.5)
        assert float(step.g) == pytest.approx(g)
        x1 = f64([0.1, -0.8])
        exact = torch.distributions.Normal(mean, g * (-dt) ** 0.5).log_prob(x1).mean(1)
        assert torch.allclose(step.log_prob(x1).double(), exact, rtol=1e-5)


@pytest.mark.parametrize(("path", "tolerance"), [(Flow(), 1e-3), (VP(), 2e-3)], ids=["flow", "vp"])
@pytest.mark.parametrize(("steps", "flow_std"), [(10, 0.5793), (100, 0.5856), (1000, 0.5881)])
def test_the_sde_keeps_the_marginals_of_a_gaussian(path, tolerance, steps, flow_std):
    """Mean and variance, carried from step to step: the mean is exact always, the deviation in the limit."""
    world = Gaussian(path, f64(1.5), f64(0.6))
    times = torch.linspace(0.95, 0.02, steps + 1, dtype=torch.float64)
    mean, variance = path.alpha(times[0]) * world.mean, world.spread(times[0]) ** 2

    def moved(x, t, s):
        x = x.reshape(1, 1)
        return sde_transition(path, x, world(x, t), t, s, 0.7, times[1])

    for t, s in itertools.pairwise(times):
        step, one = moved(mean, t, s), moved(mean + 1, t, s)
        variance = (one.mean - step.mean)[0] ** 2 * variance + step.std**2
        mean = step.mean[0]
    if path == Flow():
        assert float(mean) == pytest.approx(0.98 * 1.5, rel=1e-12)
        assert float(variance.sqrt()) == pytest.approx(flow_std, abs=1e-4)
    if steps == 1000:
        assert float(mean) == pytest.approx(float(path.alpha(times[-1]) * world.mean), rel=tolerance)
        assert float(variance.sqrt()) == pytest.approx(float(world.spread(times[-1])), rel=tolerance)


def test_a_rollout_ends_in_the_data_whatever_its_noise():
    world, noise = Gaussian(Flow(), MEAN, STD), Noise(tuple(sample_seeds(0, 2000)))
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    points = sde_rollout(world, noise.normal("start", (2,)).double(), times, {}, noise, 0.7)
    assert len(points) == 41
    assert torch.allclose(points[-1].mean(0), MEAN, atol=0.05)
    assert torch.allclose(points[-1].std(0), STD, rtol=0.06)
    alone = sde_rollout(world, points[0][:1], times, {}, Noise(noise.seeds[:1]), 0.7)
    assert torch.allclose(alone[-1], points[-1][:1], rtol=1e-12)


def moved(offset=0.3):
    f = policy()
    with torch.no_grad():
        f.net.offset.fill_(offset)
    return f


def parts(grpo, net, old=None):
    roles = {"net": net, "teacher": Gaussian(Flow(), MEAN, STD)} | ({"old": old} if old else {})
    points, times, cond = grpo.rollout(old or net, batch(0, 16))
    a = torch.linspace(-1, 1, 16).double()
    return roles, points, times, cond, a


@pytest.mark.parametrize("refresh", [1, 2])
def test_the_ratio_is_one_before_the_first_update(refresh):
    grpo = FlowGRPO(reward=Quadratic(), group_size=8, refresh=refresh)
    f = moved()
    old = Denoiser(grpo.roles(f.net, f)["old"], f.path, f.parameterisation) if refresh > 1 else None
    if old:  # as a run begins: the copy is brought up to date when its first step starts
        with torch.no_grad():
            old.net.offset.zero_()
    roles = {"net": f, "teacher": Gaussian(Flow(), MEAN, STD)} | ({"old": old} if old else {})
    (_, _, logs), *rest = list(grpo(roles, batch(0, 16)))
    assert not rest
    assert float(logs["ratio_off"]) == 0 and float(logs["ratio"]) == 1 and float(logs["clip_fraction"]) == 0


def test_a_ratio_away_from_one_is_clipped_on_the_side_that_pays():
    grpo = FlowGRPO(reward=Quadratic(), group_size=8, refresh=4, beta=0.0, clip_range=1e-3)
    losses, logs = grpo.losses(*parts(grpo, moved(0.2), policy()))
    step = grpo.policy(moved(0.2), *parts(grpo, moved(0.2), policy())[1:4])
    roles, points, times, cond, a = parts(grpo, moved(0.2), policy())
    before = grpo.policy(roles["old"], points, times, cond).log_prob(torch.cat(points[1:-1]))
    rho = (step.log_prob(torch.cat(points[1:-1])) - before).exp()
    a = a.to(rho).repeat(len(points) - 2)
    exact = torch.where(a > 0, -a * rho.clamp(max=1.001), -a * rho.clamp(min=0.999))
    assert torch.allclose(losses, exact)
    assert 0 < float(logs["clip_fraction"]) <= 1


def test_the_pull_is_zero_at_the_reference_and_has_a_gradient_elsewhere():
    grpo = FlowGRPO(reward=Quadratic(), group_size=8, beta=1.0)
    for f, zero in ((policy(), True), (moved(), False)):
        roles, points, times, cond, a = parts(grpo, f)
        losses, logs = grpo.losses(roles, points, times, cond, 0 * a)  # the pull alone
        losses.mean().backward()
        assert (float(logs["kl"]) < 1e-20) == zero
        assert (float(f.net.offset.grad.norm()) < 1e-12) == zero
    # offset: .3 (1 + t) moves the mean by that times dt and its share of eps: the exact divergence, times the step
    step, reference = (grpo.policy(g, points, times, cond) for g in (f, roles["teacher"]))
    exact = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(p.mean, p.std[:, None].expand_as(p.mean)) for p in (step, reference))
    )
    gap = (step.std / step.g)[:, None] ** 2
    assert float((exact * gap).detach().mean()) == pytest.approx(float(logs["kl"]), rel=1e-10)


def test_the_old_policy_is_renewed_every_so_many_updates():
    grpo = FlowGRPO(reward=Quadratic(), group_size=8, refresh=2)
    f, old = moved(0.4), policy()
    roles = {"net": f, "old": old, "teacher": Gaussian(Flow(), MEAN, STD)}
    next(grpo(roles, replace(batch(1, 16), step=1)))
    assert float(old.net.offset.detach().abs().max()) == 0
    next(grpo(roles, replace(batch(2, 16), step=2)))
    assert torch.equal(old.net.offset, f.net.offset)


@pytest.mark.parametrize("refresh", [1, 2])
def test_the_reward_of_a_gaussian_policy_rises(refresh):
    grpo = FlowGRPO(reward=Quadratic(curvature=0.0, slope=1.0), steps=6, group_size=32, refresh=refresh, clip_range=0.1)
    rewards = fit_policy(grpo, steps=20, lr=0.03)
    assert rewards[-1] > rewards[0] + 0.3
