"""A point mass and its expert, and rollouts in its world: the optimum, the two ways, and what noise does to chunks."""

from dataclasses import replace

import torch

from gen.data.point_mass import PointMass
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.models.unet1d import UNet1D
from gen.pipeline import Pipeline
from gen.rollout import expert_policy, rollout, sampled_policy
from tests.models.test_families import random_net

STILL = PointMass(noise=0.0)


def test_the_expert_s_gain_is_the_optimum_and_its_loop_as_fast_as_it_is():
    """The cost of an episode has no slope there; the closed loop's modes shrink by .848 a step."""
    gain = STILL.gain.clone().requires_grad_()
    state, cost = torch.tensor([1.0, -0.5]).double(), 0.0
    for _ in range(300):
        action = -gain @ state
        cost = cost + state[0] ** 2 + 0.1 * state[1] ** 2 + 0.05 * action**2
        state = torch.stack([state[0] + 0.1 * state[1] + 0.005 * action, state[1] + 0.1 * action])
    (slope,) = torch.autograd.grad(cost, gain)
    assert slope.abs().max() < 1e-9 * float(cost.detach()) + 1e-9
    loop = torch.tensor([[1, 0.1], [0, 1]], dtype=torch.float64)
    loop = loop - torch.tensor([[0.005], [0.1]], dtype=torch.float64) @ STILL.gain[None]
    torch.testing.assert_close(torch.linalg.eigvals(loop).abs(), torch.full((2,), 0.8477).double(), rtol=0, atol=1e-4)


def test_chunks_are_the_expert_s_plans_and_split_by_a_coin():
    train, test = (replace(STILL, episodes=40).open(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (40 * 60, 10 * 60) and train.fingerprint != test.fingerprint
    assert train.fingerprint == replace(STILL, episodes=40).open("train").fingerprint
    assert torch.equal(train.batch([3, 70])["vector"][1], train[70]["vector"]) and train[0]["x"].shape == (2, 16)
    state, starts = train.vector.double() / 4, train.x[::60, 1].double()
    left, right = (STILL.plan(state, torch.full((len(state),), side).double()) for side in (1, -1))
    off = torch.minimum((train.x - left).abs().amax((1, 2)), (train.x - right).abs().amax((1, 2)))
    assert off.max() < 1e-4  # of states in single precision
    assert 0.25 < float((starts[:, 0] > 0).double().mean()) < 0.75
    flip = torch.tensor([1.0, -1, 1, -1]).double()
    mirrored = STILL.plan(state * flip, -torch.ones(len(state)).double()) * flip[:2, None]
    torch.testing.assert_close(mirrored, left)


def test_without_noise_a_chunk_is_the_closed_loop_and_noise_spoils_long_ones():
    """Shares of 128 episodes; the noted ones of 400 are .98 and .26 at noise .05."""
    every, whole = (rollout(STILL, expert_policy(STILL, 8), 8, execute) for execute in (1, 16))
    torch.testing.assert_close(every, whole)
    assert STILL.outcome(every)["success"].all() and not STILL.outcome(every)["collision"].any()
    noisy, shares = PointMass(), []
    for execute in (1, 16):
        found = noisy.outcome(rollout(noisy, expert_policy(noisy, 128), 128, execute))
        shares.append(float(found["success"].double().mean()))
    assert shares[0] > 0.93 and 0.15 < shares[1] < 0.4


def test_the_mean_of_both_ways_drives_into_the_disc():
    def mean(state, seeds):
        left = torch.ones(len(state), dtype=torch.float64)
        return (STILL.plan(state, left) + STILL.plan(state, -left)) / 2

    assert STILL.outcome(rollout(STILL, mean, 16, 8))["collision"].all()
    free = replace(STILL, radius=0.0)
    assert free.outcome(rollout(free, mean, 16, 8))["success"].all() and free.reset(Noise((1, 2)))[0].shape == (2, 4)


def test_an_episode_does_not_depend_on_the_others():
    world = PointMass(horizon=8, steps=10)
    net = random_net(UNet1D.preset("signals", length=8, vector_width=4, width=8), dtype=torch.float32)
    policy = sampled_policy(Pipeline(Denoiser(net, Flow(), Velocity()), world.shape), world, solver="euler", steps=2)
    few, many = rollout(world, policy, 2, 4), rollout(world, policy, 5, 4)
    torch.testing.assert_close(many[:2], few, rtol=1e-4, atol=1e-4)
    assert few.shape == (2, 11, 4) and not torch.equal(rollout(world, policy, 2, 4, seed=1), few)
