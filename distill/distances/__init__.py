"""Distances between a student's output and its target, one file each.

    square   the mean square                                 lpips   the learned perceptual distance of images
    huber    the pseudo-Huber distance

Any distance that is zero only between equals will do where each noise has one right answer: rf++ calls them
premetrics.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Distance"]


class Distance(Protocol):
    """A plug-in of this folder: a frozen dataclass, called with outputs and targets."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each sample, [B].

        Args:
            output: the student's, [B, ...]; gradients go through it.
            target: the other's, shaped alike.
        """
        ...
