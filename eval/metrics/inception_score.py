"""The Inception score."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate

__all__ = ["InceptionScore"]

SORTED = 1.1  # the score of all samples over the mean of blocks from which on the blocks are of different classes


@dataclass(frozen=True)
class InceptionScore:
    """exp of the mean KL divergence of a sample's class probabilities from the mean ones, averaged over blocks.

    Salimans et al. 2016. By default ADM's rule: blocks of 5000 in the order of the samples, the last one shorter. In
    samples sorted by class a block holds few classes, and the score is far too low: that warns, and `shuffle` mends it.
    torch-fidelity's rule is {"splits": 10, "shuffle": 2020}. Scores are the logits without the bias, as all tools have
    them; the extractor sees to that. The standard error is the delta method's over the samples.

    Attributes:
        block: samples of a block.
        splits: number of equal blocks, in place of `block`; 0 for blocks of that size.
        shuffle: seed of numpy's RandomState, whose permutation orders the samples first; None keeps their order.
    """

    columns: ClassVar = (
        Column(
            "inception_score",
            "IS",
            higher_is_better=True,
            perfect=1.0,
            note="Inception score: how sure and how varied a classifier's answers are; 1 is the worst",
            priority=94,
        ),
    )
    needs: ClassVar = "predictions"
    default: ClassVar = False

    block: int = 5000
    splits: int = 0
    shuffle: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, block="[2, inf)", splits="[0, inf)", shuffle="[0, inf)")

    def __call__(self, samples: Tensor) -> Estimate:
        """Compute it from class scores [N, K], at least 2 in each block."""
        if samples.ndim != 2 or len(samples) < max(2, 2 * self.splits):
            raise UserError(f"inception_score: scores {list(samples.shape)}; allowed: [N, K], N >= 2 in each split")
        n, k = samples.shape
        order = None if self.shuffle is None else torch.from_numpy(np.random.RandomState(self.shuffle).permutation(n))
        count = self.splits or -(-n // self.block)
        edges = [i * n // count if self.splits else min(i * self.block, n) for i in range(count + 1)]
        if edges[-1] - edges[-2] < 2:  # a single sample has no score
            edges[-2:] = edges[-1:]
        scores, variances, means, entropy = [], [], torch.zeros(k, dtype=torch.float64), 0.0
        for start, stop in itertools.pairwise(edges):
            log_p = log_probabilities(samples[start:stop] if order is None else samples[order[start:stop]])
            mean = log_p.logsumexp(0) - math.log(stop - start)
            p = log_p.exp()
            divergence = (p * (log_p - mean)).sum(1)
            scores.append(math.exp(float(divergence.mean())))
            variances.append(scores[-1] ** 2 * float(divergence.var()) / (stop - start))
            means += (stop - start) / n * mean.exp()
            entropy -= float((p * log_p).sum()) / n
        value = sum(scores) / len(scores)
        pooled = math.exp(-float(torch.special.xlogy(means, means).sum()) - entropy)
        if len(scores) > 1 and pooled > SORTED * value:
            warnings.warn(
                f"inception_score: {pooled:.4g} over all samples, {value:.4g} in blocks: they hold different classes, "
                'as samples sorted by class do; use {"name": "inception_score", "shuffle": 2020}',
                stacklevel=2,
            )
        return Estimate(value, sum(variances) ** 0.5 / len(scores), n)


def log_probabilities(scores: Tensor) -> Tensor:
    """Return log-softmax of class scores in float64; UserError if some are not finite.

    Args:
        scores: [B, K].
    """
    if not bool(scores.isfinite().all()):
        raise UserError("inception_score: scores that are not finite")
    return scores.double().log_softmax(1)
