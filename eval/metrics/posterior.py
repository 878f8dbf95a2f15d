"""Several restorations of each degraded picture: their mean, their spread, and whether it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.estimate import mean_estimate, ratio_estimate
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_pairs, images_at_once
from gen.eval.metrics.psnr import CEILING, decibels

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior:
    """Samples of p(picture | degraded one), k of each: a right sampler's truth is like one more of them.

    The mean of k has less error than each: of the posterior, 10 log10(2 k / (k + 1)) dB, 3.01 for many. The ratio of
    spread and error is the root of (1 + 1/k) times the mean variance of the samples over the mean squared error of
    their mean, 1 if both are as large (Fortin et al. 2014); below, samples are too sure. Covered is the share of pixels
    between the least and the greatest of their samples, (k - 1) / (k + 1) of a right sampler. Calibration is the total
    variation distance of the ranks of the true pixels among their samples from uniform ones (Hamill 2001); ties share
    their ranks. The error is over degraded pictures.
    """

    columns: ClassVar = (
        Column(
            "mean_psnr",
            "PSNR of the mean",
            higher_is_better=True,
            perfect=CEILING,
            note="peak signal-to-noise ratio of the mean of all samples of a degraded picture, in dB",
            priority=15,
        ),
        Column(
            "deviation",
            "Deviation",
            higher_is_better=None,
            note="root mean square over pixels of the deviation of samples of one degraded picture, white being 1",
            priority=14,
        ),
        Column(
            "spread_error",
            "Spread / error",
            higher_is_better=None,
            perfect=1.0,
            note="deviation of samples over the error of their mean, 1 of a right sampler, less if it is too sure",
            priority=13,
        ),
        Column(
            "covered",
            "Covered",
            higher_is_better=None,
            percent=True,
            note="pixels between the least and the greatest of k samples, (k - 1) / (k + 1) of a right sampler",
            priority=12,
        ),
        Column(
            "calibration",
            "Calibration",
            note="distance of the true pixels' ranks among their samples from uniform ones, 0 to 1",
            priority=11,
        ),
    )
    needs: ClassVar = "posterior"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor, inputs: Tensor) -> tuple[Estimate, ...]:
        """Compute it from uint8 images [N, C, H, W], those that they should be, and the number of the picture of each.

        Args:
            samples: as many of each picture, at least two.
            reference: the same picture for all samples of one.
            inputs: int64 [N].
        """
        check_pairs("posterior", samples, reference)
        order, k = _groups(samples, inputs)
        errors, variances, psnr, ranks = list[float](), list[float](), list[float](), list[Tensor]()
        for part in order.split(max(1, images_at_once(samples) // k)):
            x, truth = samples[part].double(), reference[part[:, 0]].double()  # [B, k, C, H, W], [B, C, H, W]
            if not torch.equal(reference[part], reference[part[:, :1]].expand_as(samples[part])):
                raise UserError("posterior: samples of one degraded picture have several truths")
            mean = x.mean(1)
            errors += ((mean - truth) ** 2).flatten(1).mean(1).tolist()
            variances += (x.var(1).flatten(1).mean(1) * (1 + 1 / k)).tolist()
            psnr += decibels(mean, truth).tolist()
            ranks += [_rank_shares(x, truth)]
        return (
            mean_estimate(psnr),
            _root(mean_estimate([v / (1 + 1 / k) for v in variances]), 255.0),
            _spread_error(variances, errors),
            *_of_ranks(torch.cat(ranks)),
        )


def _groups(samples: Tensor, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the rows of each picture's samples, [M, k], and k."""
    if inputs.shape != samples.shape[:1] or inputs.is_floating_point():
        raise UserError(f"posterior: numbers of pictures {list(inputs.shape)} for {len(samples)} samples")
    counts = torch.unique(inputs, return_counts=True)[1]
    k = int(counts[0])
    if k < 2 or bool((counts != k).any()):
        found = sorted(set(counts.tolist()))
        raise UserError(
            f"posterior: {', '.join(map(str, found))} samples of a picture; as many of each, and at least 2"
        )
    return inputs.argsort(stable=True).view(-1, k), k


def _rank_shares(x: Tensor, truth: Tensor) -> Tensor:
    """Return the share of a picture's pixels at each rank among k samples, [B, k + 1]; ties share their ranks.

    Args:
        x: samples [B, k, ...].
        truth: [B, ...].
    """
    k = x.shape[1]
    below, equal = (x < truth[:, None]).sum(1).flatten(1), (x == truth[:, None]).sum(1).flatten(1)  # [B, P]
    rank = torch.arange(k + 1)
    inside = (rank >= below[..., None]) & (rank <= (below + equal)[..., None])
    return (inside.double() / (1 + equal[..., None])).mean(1)


def _of_ranks(shares: Tensor) -> tuple[Estimate, Estimate]:
    """Return what lies inside, and the distance of the mean of rows [M, k + 1] from uniform with its jackknife."""
    m, ranks = shares.shape

    def distance(mean: Tensor) -> Tensor:
        return (mean - 1 / ranks).abs().sum(-1) / 2

    covered = mean_estimate(shares[:, 1:-1].sum(1).tolist())
    se = None
    if m > 1:
        without = distance((shares.sum(0) - shares) / (m - 1))
        se = float(((without - without.mean()) ** 2).sum() * (m - 1) / m) ** 0.5
    return covered, Estimate(float(distance(shares.mean(0))), se, m)


def _spread_error(variances: list[float], errors: list[float]) -> Estimate:
    if not sum(errors):
        if sum(variances):
            raise UserError("posterior: the mean of the samples is the truth, and they are not")
        return Estimate(1.0, 0.0, len(errors))
    return _root(ratio_estimate(variances, errors))


def _root(square: Estimate, unit: float = 1.0) -> Estimate:
    """Return the square root of an estimate, over a unit, by the delta method."""
    root = square.value**0.5
    return Estimate(root / unit, (square.se or 0.0) / (2 * root * unit) if root else 0.0, square.n)
