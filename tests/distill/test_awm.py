"""AWM: the minimum of its loss in closed form, when there is none, and what a step's likelihood costs instead."""

import pytest
import torch
from torch import nn

import gen
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Eps, Velocity
from gen.diffusion.path import EDM, VP, Flow, Prediction, Trig
from gen.diffusion.worlds import Gaussian
from gen.distillers.awm import AWM
from gen.distillers.lib.policy import diversity, group_advantages, group_condition
from gen.distillers.rewards.quadratic import Quadratic
from gen.samplers.solvers.ancestral import Ancestral
from gen.training.objectives import Batch
from gen.training.run import Sampler
from tests.distill.policies import fit_policy


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


class Constant(nn.Module):
    """One answer for every x and t."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(f64(*value))

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.value.expand_as(x)


def toy(value, path, param):
    return Denoiser(Constant(value), path, param)


def setting(path=None, parameterisation=None, n=64):
    path, param = path or Flow(), parameterisation or Velocity()
    batch = Batch(torch.zeros(n, 2).double(), {}, training_noise(0, 0, range(n)))
    x0 = batch.noise.normal("data", (2,)).double() + 1
    advantage = (2 * batch.noise.uniform("advantage") - 1).abs() - 0.4
    roles = {"net": toy([0, 0], path, param), "teacher": toy([0.3, -1], path, param)}
    return {**roles, "trusted": toy([0.1, 2], path, param)}, batch, x0, advantage


@pytest.mark.parametrize(("path", "param"), [(Flow(), Velocity()), (VP(), Eps())], ids=["flow", "vp"])
@pytest.mark.parametrize(("beta", "trust"), [(1.5, 0.0), (0.7, 0.8)])
def test_the_minimum_is_the_weighted_mean_of_targets(path, param, beta, trust):
    """v* = (E[A target] + beta reference + trust trusted) / (E[A] + beta + trust), for a net that says one thing."""
    roles, batch, x0, a = setting(path, param)
    awm = AWM(power=1.0, time_power=0.0, beta=beta, trust=trust, times_per_sample=2)
    # The targets the loss used, read off its own gradient: at output v it is 2 (A (v - target) + pulls) / 2 elements.
    v = roles["net"].net.value

    def gradient():
        return torch.autograd.grad(awm.losses(roles, batch, x0, {}, a)[0].mean(), v)[0]

    shares = torch.cat([(i + batch.noise.uniform(f"t.{i}")) / 2 for i in range(2)])
    t = awm.times.at(shares, path)
    eps = torch.cat([batch.normal(f"eps.{i}") for i in range(2)])
    target = param.target(path, torch.cat([x0] * 2), eps, t)
    pulled = beta * roles["teacher"].net.value + trust * roles["trusted"].net.value
    best = ((torch.cat([a] * 2)[:, None] * target).mean(0) + pulled) / (a.mean() + beta + trust)
    assert gradient().norm() > 0.01
    with torch.no_grad():
        v.copy_(best)
    assert gradient().abs().max() < 1e-12


@pytest.mark.parametrize(("power", "trust", "bounded"), [(1.0, 1.001, True), (0.25, 1e-3, True), (1.0, 0.9, False)])
def test_where_all_advantages_are_negative_the_pull_keeps_the_minimum(power, trust, bounded):
    roles, batch, x0, _ = setting()
    awm = AWM(power=power, time_power=0.0, beta=0.0, trust=2.0)
    object.__setattr__(awm, "trust", trust)  # past the guard

    def loss(v):
        with torch.no_grad():
            roles["net"].net.value.copy_(f64(v, v))
            return float(awm.losses(roles, batch, x0, {}, -torch.ones(64).double())[0].mean())

    assert all((loss(far) > loss(0.0)) == bounded for far in (1e8, -1e8))
    spec = {**spec_of(awm), "trust": trust}
    if bounded:
        assert build("distillers", spec) == awm
    else:
        with pytest.raises(UserError, match="unbounded below"):
            build("distillers", spec)


def test_samples_of_a_policy_reuse_no_features():
    with pytest.raises(UserError, match=r"rollout.cache = FORA"):
        AWM(rollout=Sampler("euler", steps=4, cache="fora"))


def test_what_has_no_minimum_is_refused():
    for unbounded in ({"power": 1.0, "beta": 0.5, "trust": 0.5}, {"beta": 0.0, "trust": 0.0}):
        with pytest.raises(UserError, match="unbounded below"):
            AWM(**unbounded)
    AWM(power=1.0)  # as published: 1 + .001 against 1
    AWM(beta=1e-3, trust=0.0)


def test_the_surrogate_at_power_one_is_the_error_and_at_the_published_power_is_its_root():
    m, t = f64(0.0, 0.5, 2.0), f64(0.2, 0.6, 1.0)
    assert torch.allclose(AWM(power=1.0, time_power=1.0).ghuber(m, t), m * t, rtol=0, atol=1e-15)
    published = ((m + 1e-10) ** 0.25 - 1e-10**0.25) * t / 0.25
    assert torch.equal(AWM().ghuber(m, t), published)


def test_no_gradient_reaches_teacher_or_trusted():
    roles, batch, x0, a = setting()
    AWM().losses(roles, batch, x0, {}, a)[0].mean().backward()
    assert roles["net"].net.value.grad is not None
    assert roles["teacher"].net.value.grad is roles["trusted"].net.value.grad is None


# What it does without: the likelihood of steps


def extra_variance(path, t, s):
    """Return n_t^2 n_s^2 / (n_t^2 - n_s^2) with n = sigma / alpha: the variance that one step's likelihood adds.

    The likelihood of a stochastic step x_t -> x_s (DDPO, Flow-GRPO) is denoising with x_s in place of the data: it has
    the same minimiser, and a target for x0 whose variance given x_t is larger by this.
    """
    n_t, n_s = (path.sigma(t) / path.alpha(t)) ** 2, (path.sigma(s) / path.alpha(s)) ** 2
    return n_t * n_s / (n_t - n_s)


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(8.0), Trig()], ids=repr)
def test_the_variance_a_step_s_likelihood_adds(path):
    """x_s of the ancestral step is affine in x0: read back from it, x0 has this much noise of its own."""
    t, s = f64(0.7)[0] * path.t1, f64(0.4)[0] * path.t1
    x = f64([0.4])

    def step(x0, noise):
        x0 = f64([x0])
        eps = (x - path.alpha(t) * x0) / path.sigma(t)
        return Ancestral().step(lambda *_: Prediction(x0, eps), path, x, t, s, None, lambda: f64([noise]))[0]

    slope, noise = step(1.0, 0.0) - step(0.0, 0.0), step(0.0, 1.0) - step(0.0, 0.0)
    assert float((noise / slope) ** 2) == pytest.approx(float(extra_variance(path, t, s)), rel=1e-10)


def test_the_step_s_target_has_the_same_regression_and_the_larger_variance():
    path, t, s = EDM(8.0), f64(2.0)[0], f64(1.0)[0]
    g = torch.Generator().manual_seed(0)
    x0, e, z = torch.randn(3, 200_000, generator=g, dtype=torch.float64)
    x_s = x0 + e
    x_t = x_s + 3**0.5 * z
    target = (x_s - x_t / 4) / (1 - 1 / 4)  # x0, read back from the posterior mean of x_s
    slopes = [float((x_t * y).mean() / (x_t**2).mean()) for y in (x0, target)]
    assert slopes == pytest.approx([0.2, 0.2], abs=0.005)
    residues = [float((y - 0.2 * x_t).var()) for y in (x0, target)]
    assert residues[1] - residues[0] == pytest.approx(float(extra_variance(path, t, s)), rel=0.02)
    assert float(extra_variance(path, t, s)) == pytest.approx(4 / 3)


# Groups


def test_advantages_compare_within_groups_and_know_one_scale():
    reward = f64(1, 2, 3, 10, 10, 10.0)
    a = group_advantages(reward, 3, 5.0)
    assert torch.allclose(a, f64(-1, 0, 1, 0, 0, 0) / (reward.std(correction=0) + 1e-4))
    assert group_advantages(f64(0, 0, 0, 100.0), 4, 1.5).max() == 1.5
    assert group_advantages(torch.ones(4).double(), 4, 5.0).abs().max() == 0


def test_groups_share_their_condition():
    cond = group_condition({"y": torch.arange(6)}, 6, 3)
    assert cond["y"].tolist() == [0, 0, 0, 3, 3, 3]
    with pytest.raises(UserError, match="group_size = 4 does not divide the 6"):
        group_condition({}, 6, 4)


def test_diversity_is_the_mean_distance_inside_groups():
    x = f64([0, 0], [3, 4], [7, 7], [7, 7])
    assert float(diversity(x, 2)) == pytest.approx(2.5)
    assert float(diversity(x[2:], 2)) == 0


# Rewards


def test_the_tilted_gaussian_is_the_product_of_its_parts():
    reward, mean, std = Quadratic(target=1.0, curvature=2.0, slope=0.3), f64(0.5), f64(0.7)
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    log = -((x - 0.5) ** 2) / (2 * 0.49) + reward(x[:, None], {}) / 0.4
    p = (log - log.max()).exp()
    p = p / p.sum()
    m = (p * x).sum()
    found = m, (p * (x - m) ** 2).sum().sqrt()
    assert torch.allclose(torch.stack(found), torch.cat(reward.tilted(mean, std, 0.4)), rtol=1e-6)


def test_the_classifier_knows_digits_and_its_kinds_agree():
    held_out = gen.build("data", "digits").open("test")
    items = torch.utils.data.default_collate([held_out[i] for i in range(64)])
    cond = {"y": items["y"]}
    reward = build("distillers.rewards", "classifier")
    right = reward(items["x"], cond)
    wrong = reward(items["x"], {"y": (items["y"] + 1) % 10})
    assert right.mean() > 0.8 and wrong.mean() < 0.05
    log = build("distillers.rewards", {"name": "classifier", "kind": "log"})
    assert torch.allclose(log(items["x"], cond).exp(), right)
    capped = build("distillers.rewards", {"name": "classifier", "cap": 0.5})
    assert torch.equal(capped(items["x"], cond), right.clamp(max=0.5))
    assert build("distillers.rewards", spec_of(capped)) == capped
    with pytest.raises(UserError, match="these samples have none"):
        reward(items["x"], {})
    with pytest.raises(UserError, match="knows 10 classes, and a sample has the label 10"):
        reward(items["x"], {"y": items["y"] + 1})


# Learning


def test_the_reward_of_a_gaussian_policy_rises():
    awm = AWM(reward=Quadratic(curvature=0.0, slope=1.0), rollout=Sampler("euler", steps=8), group_size=32, beta=0.01)
    rewards = fit_policy(awm, steps=20)
    assert rewards[-1] > rewards[0] + 0.5


def test_samples_are_the_policy_s_own():
    awm = AWM(reward=Quadratic(), rollout=Sampler("euler", steps=400), group_size=8)
    world = Gaussian(Flow(), f64(1.0, -2.0), f64(0.6, 0.3))
    batch = Batch(torch.zeros(256, 2).double(), {}, training_noise(0, 0, range(256)))
    x0, _ = awm.sample(world, batch)
    assert torch.allclose(x0, world.sample(batch.normal("start")), atol=0.02)
