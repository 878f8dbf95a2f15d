"""NoLoCo: processes meet in random pairs, and nothing is exchanged by all (Kolehmainen et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.training.outer import Mean, random_pairs

__all__ = ["NoLoCo"]


@dataclass(frozen=True)
class NoLoCo:
    """Momentum on what a pair has moved, and a pull towards its mean (arXiv 2506.10911).

    v <- momentum v + lr mean(theta - phi) + pull (mean(phi) - phi), phi <- phi + v. Each process has its own phi. Where
    nothing moves and the momentum is 0, a meeting of n processes multiplies the expected variance of phi over them by
    1 - n (1 - (1 - pull)^2) / (2 (n - 1)): by (1 + (1 - pull)^2) / 2 for many, by (1 - pull)^2 for two.

    Attributes:
        every: steps between two meetings; 50 as in the public code.
        lr: outer learning rate, positive; the public code's 0.7.
        momentum: in [0, 1); the public code's 0.5.
        pull: towards the pair's mean, in (0, 2), from where on the processes part; the public code's 0.7.
    """

    every: int = 50
    lr: float = 0.7
    momentum: float = 0.5
    pull: float = 0.7

    def __post_init__(self) -> None:
        check_fields(self, every="[1, inf)", lr="(0, inf)", momentum="[0, 1)", pull="(0, 2)")

    def partners(self, seed: int, meeting: int, n: int) -> list[int]:
        return random_pairs(seed, meeting, n)

    def update(self, theta: Tensor, phi: Tensor, velocity: Tensor, mean: Mean) -> tuple[Tensor, Tensor]:
        moved, middle = mean(torch.stack([theta - phi, phi]))
        velocity = self.momentum * velocity + self.lr * moved + self.pull * (middle - phi)
        return phi + velocity, velocity
