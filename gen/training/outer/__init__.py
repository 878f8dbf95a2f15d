"""Training with little communication: processes step apart, and meet every so many steps (the outer step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gen.diffusion.noise import derive

__all__ = ["Mean", "Outer", "random_pairs"]

Mean = Callable[[Tensor], Tensor]  # [..., P] of this process -> the mean over the processes that meet


class Outer(Protocol):
    """A plug-in of this folder: a frozen dataclass, the optimiser of the outer step.

    Each process has outer weights phi, with which it began to step apart, and inner weights theta, to which its own
    steps have led since.
    """

    @property
    def every(self) -> int:
        """Steps between two meetings, at least 1."""
        ...

    def partners(self, seed: int, meeting: int, n: int) -> list[int] | None:
        """Return whom each of n processes meets, itself if nobody; None where all meet.

        Args:
            seed: the run's.
            meeting: its number, from 1.
            n: processes.
        """
        ...

    def update(self, theta: Tensor, phi: Tensor, velocity: Tensor, mean: Mean) -> tuple[Tensor, Tensor]:
        """Return new outer weights, from which the process goes on, and their velocity.

        Args:
            theta, phi: inner and outer weights, [..., P].
            velocity: that the last meeting returned, zeros at first, [..., P].
            mean: exchanges a tensor with the processes that meet; they call it equally often.
        """
        ...


def random_pairs(seed: int, meeting: int, n: int) -> list[int]:
    """Return random partners of n processes, which all of them can compute; of an odd number one stays alone.

    Args:
        seed, meeting, n: as of Outer.partners.
    """
    generator = torch.Generator().manual_seed(derive("pairs", seed, meeting))
    order = torch.randperm(n, generator=generator).tolist()
    partners = list(range(n))
    for one, other in zip(order[::2], order[1::2], strict=False):
        partners[one], partners[other] = other, one
    return partners
