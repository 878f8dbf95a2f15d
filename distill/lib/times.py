"""Times of a training step and of a validation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gen.diffusion.path import NoisePath
from gen.diffusion.times import Times
from gen.training.objectives import Batch

__all__ = ["draw_times", "mean_at_fixed_times", "mean_over"]


def draw_times(times: Times, batch: Batch, name: str, path: NoisePath) -> Tensor:
    """Draw a time for each sample of a batch, [B].

    Args:
        times: the density.
        batch: whose noise is drawn from.
        name: of the draw.
        path: the noise path.
    """
    return batch.to_device(times.at(batch.noise.uniform(name), path))


def mean_over(values: Tensor, batch: Batch, losses: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of losses at some times, each the same for the whole batch; 0-d.

    Args:
        values: times, or intervals of a grid, [n].
        batch: the data.
        losses: maps values [B] to losses [B, ...].
    """
    return torch.stack([losses(value.expand(len(batch.x))).mean() for value in values]).mean()


def mean_at_fixed_times(times: Times, path: NoisePath, batch: Batch, losses: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of losses at 8 times, the midpoints of equal shares of a density; 0-d.

    Args:
        times: the density.
        path: the noise path.
        batch: the data.
        losses: maps times [B] to losses [B, ...].
    """
    return mean_over(batch.to_device(times.fixed(path)), batch, losses)
