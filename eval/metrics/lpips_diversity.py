"""Diversity of samples: the mean LPIPS of random pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.features.lib.lpips import Lpips
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import images_at_once, mean_over_images

__all__ = ["LPIPSDiversity"]


@dataclass(frozen=True)
class LPIPSDiversity:
    """The mean perceptual distance over random pairs of different samples, of one label where there are labels.

    Read it beside that of real images: noise is diverse too. The standard error takes pairs for independent.

    Attributes:
        pairs: number of pairs.
        seed: of their choice.
        distance: trunk and weights.
    """

    columns: ClassVar = (
        Column(
            "lpips_diversity",
            "LPIPS diversity",
            higher_is_better=None,
            note="mean perceptual distance of random pairs of samples of one label",
            priority=19,
        ),
    )
    needs: ClassVar = "labelled_images"
    default: ClassVar = False

    pairs: int = 1000
    seed: int = 0
    distance: Lpips = field(default_factory=Lpips)

    def __post_init__(self) -> None:
        check_fields(self, pairs="[1, inf)", seed="[0, inf)")

    def __call__(self, samples: Tensor, labels: Tensor | None) -> Estimate:
        """Compute it from uint8 images [N, C, H, W] and their labels int64 [N], if they have any."""
        if samples.ndim != 4 or (labels is not None and labels.shape != samples.shape[:1]):
            given = None if labels is None else list(labels.shape)
            raise UserError(
                f"lpips_diversity: images {list(samples.shape)}, labels {given}; allowed: [N, C, H, W], [N]"
            )
        first, second = self.choose(torch.zeros(len(samples), dtype=torch.int64) if labels is None else labels)
        distance = self.distance.load()
        size = images_at_once(samples)
        estimate = mean_over_images(lambda i, j: distance(samples[i], samples[j]), first, second, size)
        return Estimate(estimate.value, estimate.se, len(samples))

    def choose(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of both samples of each pair, int64 [pairs].

        Args:
            labels: int64 [N].

        Raises:
            UserError: if no two samples have a label in common.
        """
        random = torch.Generator().manual_seed(self.seed)
        _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        order, start = inverse.argsort(stable=True), counts.cumsum(0) - counts  # samples, label by label
        able = (counts[inverse] > 1).nonzero()[:, 0]
        if not len(able):
            raise UserError(f"lpips_diversity: {len(labels)} samples, no two of one label")
        first = able[torch.randint(len(able), (self.pairs,), generator=random)]
        group = inverse[first]
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[first] - start[group]
        skip = 1 + (torch.rand(self.pairs, generator=random, dtype=torch.float64) * (counts[group] - 1)).long()
        return first, order[start[group] + (rank + skip) % counts[group]]
