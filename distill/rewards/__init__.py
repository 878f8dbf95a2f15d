"""Rewards that reinforcement learning raises, one file each.

classifier   a classifier's belief in the label of the condition
correct      1 for a right answer of a text model, 0 for a wrong one
quadratic    a reward under which the best policy of Gaussian data is known
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gen.diffusion.denoiser import Cond

__all__ = ["Reward"]


class Reward(Protocol):
    """A plug-in of this folder: a frozen dataclass; no gradient passes through it."""

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        """Return the reward of each sample, float64 [B].

        Args:
            x: samples [B, ...].
            cond: the condition under which they were generated.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D], in whose space the diversity of samples is measured.

        Args:
            x: samples [B, ...].
        """
        ...
