"""Rollouts: a policy acts in a world, chunk by chunk of actions (receding horizon)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.diffusion.noise import Noise, derive

__all__ = ["Policy", "World", "expert_policy", "rollout", "sampled_policy"]

Policy = Callable[[Tensor, Sequence[int]], Tensor]  # states [B, S] and a seed for each -> actions [B, A, horizon]


class World(Protocol):
    """The environment of a policy, such as gen.data.point_mass; all in batches, float64.

    Attributes:
        noise: standard deviation of what pushes the states.
        steps: of an episode.
    """

    noise: float
    steps: int

    def reset(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return states [B, S] at the start of episodes, and what their expert alone knows, [B].

        Args:
            noise: of the episodes.
        """
        ...

    def plan(self, state: Tensor, known: Tensor) -> Tensor:
        """Return the expert's actions [B, A, horizon] from states on.

        Args:
            state: [B, S].
            known: to the expert, [B], as `reset` returned it.
        """
        ...

    def step(self, state: Tensor, action: Tensor, push: Tensor) -> Tensor:
        """Return the states [B, S] after a step.

        Args:
            state: [B, S].
            action: [B, A].
            push: of the noise, [B, A].
        """
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return a policy's cond["vector"], [B, k].

        Args:
            state: [B, S].
        """
        ...

    def outcome(self, states: Tensor) -> dict[str, Tensor]:
        """Return what became of episodes, by name, bool [B] each.

        Args:
            states: all of them, [B, steps + 1, S].
        """
        ...


def sampled_policy(pipeline: Any, world: World, **options: Any) -> Policy:
    """Return the policy that samples each chunk from a model.

    Args:
        pipeline: a gen.pipeline.Pipeline of chunks [A, horizon] under cond["vector"].
        world: whose observations it takes.
        **options: of Pipeline.sample, such as solver and steps.
    """

    def act(state: Tensor, seeds: Sequence[int]) -> Tensor:
        samples: Tensor = pipeline.sample(cond={"vector": world.observe(state)}, seed=list(seeds), **options).x
        return samples.double()

    return act


def expert_policy(world: World, n: int, seed: int = 0) -> Policy:
    """Return the expert of a world as the policy of n episodes, who plans without knowing the noise to come.

    Args:
        world: whose expert it is.
        n, seed: as of `rollout`.
    """
    known = world.reset(_noise(n, seed))[1]
    return lambda state, seeds: world.plan(state, known)


def rollout(world: World, policy: Policy, n: int, execute: int, seed: int = 0) -> Tensor:
    """Return all states of n episodes, [n, steps + 1, S].

    Args:
        world: acted in.
        policy: acts.
        n: number of episodes; episode i depends on (seed, i) alone.
        execute: how many actions of a chunk are done before the next is asked for, at most its horizon.
        seed: of starts, noise and samples.
    """
    noise = _noise(n, seed)
    state = world.reset(noise)[0]
    states, chunk = [state], torch.empty(0)
    for k in range(world.steps):
        if k % execute == 0:
            chunk = policy(state, [derive(own, "chunk", k) for own in noise.seeds])
        push = world.noise * noise.normal(f"push {k}", chunk.shape[1:2]).to(state)
        state = world.step(state, chunk[:, :, k % execute], push)
        states.append(state)
    return torch.stack(states, 1)


def _noise(n: int, seed: int) -> Noise:
    return Noise(tuple(derive("rollout", seed, i) for i in range(n)))
