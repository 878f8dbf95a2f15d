"""Small policies of a Gaussian world, and the loop that trains them."""

from __future__ import annotations

import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.worlds import Gaussian
from gen.training.objectives import Batch

MEAN, STD = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.6, 0.4]).double()


class Affine(nn.Module):
    """The exact velocity of the world, plus a trainable offset at each time, linear in t."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    @property
    def spec(self):
        return type("Spec", (), {"channels": 2, "size": 1, "classes": 0})()

    state_shape = (2, 1, 1)

    def forward(self, x, t, cond, *, s=None, tap=None):
        world = Gaussian(Flow(), MEAN, STD)
        pred = world(x, t)
        return pred.eps - pred.x0 + self.offset[0] + t[:, None] * self.offset[1]


def policy():
    return Denoiser(Affine(), Flow(), Velocity())


def batch(step, n=128):
    return Batch(torch.zeros(n, 2).double(), {}, training_noise(0, step, range(n)), step=step)


def fit_policy(objective, steps, lr=0.05):
    """The mean reward of each step."""
    f, teacher = policy(), Gaussian(Flow(), MEAN, STD)
    extra = [r for r in objective.roles(f.net, teacher) if r != "net"]
    roles = {"net": f, "teacher": teacher, **{role: policy() for role in extra}}
    optim, rewards = torch.optim.Adam(f.net.parameters(), lr=lr), []
    for step in range(steps):
        for _, loss, logs in objective(roles, batch(step)):
            optim.zero_grad()
            loss.backward()
            optim.step()
            rewards.append(float(logs["reward"]))
        if hasattr(objective, "observe"):
            objective.observe(roles, {})
    return rewards
