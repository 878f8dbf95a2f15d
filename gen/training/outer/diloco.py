"""DiLoCo: all processes average where their steps have led, and take it as a gradient (Douillard et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.training.outer import Mean

__all__ = ["DiLoCo"]


@dataclass(frozen=True)
class DiLoCo:
    """Nesterov's momentum on the outer gradient phi - mean(theta) (arXiv 2311.08105, alg. 1).

    v <- momentum v + g, phi <- phi - lr (g + momentum v). All processes have the same phi. With lr 1 and momentum 0
    they average their weights, as local SGD does.

    Attributes:
        every: steps between two meetings; the paper's 500.
        lr: outer learning rate, positive; the paper's 0.7.
        momentum: in [0, 1); the paper's 0.9.
    """

    every: int = 500
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_fields(self, every="[1, inf)", lr="(0, inf)", momentum="[0, 1)")

    def partners(self, seed: int, meeting: int, n: int) -> None:
        return None

    def update(self, theta: Tensor, phi: Tensor, velocity: Tensor, mean: Mean) -> tuple[Tensor, Tensor]:
        gradient = phi - mean(theta)
        velocity = self.momentum * velocity + gradient
        return phi - self.lr * (gradient + self.momentum * velocity), velocity
