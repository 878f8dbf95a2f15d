"""FLD: how likely unseen images are under a mixture about the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, blocks, check_rows
from gen.eval.metrics.lib.rows import subset

__all__ = ["FLD"]

BATCH = 10_000  # training rows of a step of Adam
LOG_BOUND = 40.0  # of log variances, so that copies of a training row give no infinite likelihood
BACKGROUND = 0.9**2  # factor of the squared distance to the mean in the background component
PATIENCE, TOLERANCE = 5, 5e-4  # losses that differ by less end the fit
ROWS = 1024  # against all centres at once


@dataclass(frozen=True)
class FLD:
    """Feature likelihood divergence (Jiralerspong et al. 2023): 100 (NLL / D of the test set - that of a baseline).

    Features are standardised by the test set. A mixture of isotropic Gaussians about the samples gets the variances
    that make the training set likeliest, by Adam; its likelihood of the test set is low for samples that are poor, that
    miss a mode, or that copy the training set, whose Gaussians become narrow. The baseline is the same mixture about
    half of the training set, fitted to the other half. The gap, 100 (NLL of the training set - NLL of the test set) /
    D, is far below 0 where training images are copied. All shuffles are seeded here, and not in the published code, so
    the two agree up to their spread. Published values are of DINOv2 ViT-B/14.

    Attributes:
        centres: samples at most, and halves of the training set, that carry a Gaussian; 10,000 as published.
        epochs: of the fit, at most; 50 as published.
        lr: of Adam on log variances; 0.5 as published.
        seed: of subsets and shuffles.
    """

    columns: ClassVar = (
        Column("fld", "FLD", note="feature likelihood divergence: fidelity, diversity and novelty in one", priority=34),
        Column(
            "fld_gap",
            "FLD gap",
            higher_is_better=None,
            note="likelihood gap of training and test images under samples; far below 0, a model copies",
            priority=33,
        ),
    )
    needs: ClassVar = "split_features"
    default: ClassVar = False

    centres: int = 10_000
    epochs: int = 50
    lr: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, centres="[1, inf)", epochs="[1, inf)", lr="(0, inf)", seed="[0, inf)")

    def __call__(self, samples: Tensor, reference: Tensor, train: Tensor) -> tuple[Estimate, Estimate]:
        """Compute it from rows [N, D], rows of the test set [M, D], and of the training set [T, D], T > 1."""
        check_rows("fld", samples, reference)
        check_rows("fld", train, reference)
        if len(train) < 4:
            raise UserError(f"fld: {len(train)} training images; it needs at least 4")
        mean = torch.stack([part.sum(0) for part in blocks(reference)]).sum(0) / len(reference)
        squares = torch.stack([((part - mean) ** 2).sum(0) for part in blocks(reference)]).sum(0)
        scale = torch.where(squares > 0, squares / (len(reference) - 1), 1.0).sqrt()
        ours, test, real = (Standardised(rows, mean, scale) for rows in (samples, reference, train))
        mixture = Mixture(ours.take(subset(len(samples), self.centres, self.seed)))
        self._fit(mixture, real, torch.arange(len(train)))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        half = min(self.centres, len(mixture.centres), len(train) // 2)
        baseline = Mixture(real.take(order[:half]))
        self._fit(baseline, real, order[half:])
        nll, of_train, floor = mixture.nll(test), mixture.nll(real), baseline.nll(test)
        n = len(samples)
        return Estimate(100 * (nll - floor), None, n), Estimate(100 * (of_train - nll), None, n)

    def _fit(self, mixture: Mixture, x: Standardised, chosen: Tensor) -> None:
        """Fit the variances to the chosen rows, int64 [T], from the nearest row's distance on."""
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(self.seed + 1))]
        n, dim = len(chosen), mixture.centres.shape[1]
        closest, total_row = torch.full((len(mixture.centres),), torch.inf), torch.zeros(dim)
        for part in map(x.take, chosen.split(ROWS)):
            closest = torch.minimum(closest, torch.cdist(mixture.centres, part).amin(1) ** 2)
            total_row += part.sum(0)
        mixture.log_variance.data = ((closest + 1e-3) / dim).log()
        background = torch.zeros((), requires_grad=True)
        mean, losses = total_row / n, list[float]()
        optimiser = torch.optim.Adam([mixture.log_variance, background], lr=self.lr)
        for epoch in range(self.epochs):
            total = 0.0
            for batch in chosen.split(BATCH):
                optimiser.zero_grad()
                for part in map(x.take, batch.split(ROWS)):
                    far = log_normal(BACKGROUND * ((part - mean) ** 2).sum(1, keepdim=True), background, dim)
                    likelihood = torch.cat([mixture.terms(part), far], 1).logsumexp(1)
                    loss = -likelihood.sum() / (len(batch) * dim)
                    loss.backward()
                    total += float(loss.detach()) * len(batch) / n
                optimiser.step()
                mixture.log_variance.data.clamp_(-LOG_BOUND, LOG_BOUND)
            losses.append(total)
            if epoch > PATIENCE and max(losses[-PATIENCE:]) - min(losses[-PATIENCE:]) < TOLERANCE:
                return


@dataclass(frozen=True, eq=False)
class Standardised:
    """Rows less a mean and divided by standard deviations, of which a block is computed when it is used.

    Attributes:
        rows: [N, D].
        mean, scale: [D], float64.
    """

    rows: Tensor
    mean: Tensor
    scale: Tensor

    def take(self, indices: Tensor) -> Tensor:
        """Return some of the rows, float32 [B, D].

        Args:
            indices: int64 [B].
        """
        return ((self.rows[indices] - self.mean) / self.scale).float()


class Mixture:
    """Equal isotropic Gaussians.

    Attributes:
        centres: [K, D].
        log_variance: of each, [K].
    """

    def __init__(self, centres: Tensor) -> None:
        self.centres = centres
        self.log_variance = torch.zeros(len(centres), requires_grad=True)

    def terms(self, x: Tensor) -> Tensor:
        """Return log N(x_i | centre_k, variance_k) - log K, [B, K].

        Args:
            x: rows [B, D].
        """
        squares = torch.cdist(x, self.centres) ** 2
        return log_normal(squares, self.log_variance, x.shape[1]) - math.log(len(self.centres))

    def nll(self, x: Standardised) -> float:
        """Return the mean negative log likelihood per dimension.

        Args:
            x: rows [N, D].
        """
        parts = map(x.take, torch.arange(len(x.rows)).split(ROWS))
        with torch.no_grad():
            likelihoods = torch.cat([self.terms(part).logsumexp(1) for part in parts])
        return -float(likelihoods.double().mean()) / self.centres.shape[1]


def log_normal(squares: Tensor, log_variance: Tensor, dim: int) -> Tensor:
    """Return the log density of an isotropic normal distribution.

    Args:
        squares: squared distances to the centre.
        log_variance: of each coordinate.
        dim: number of coordinates.
    """
    return -0.5 * squares / log_variance.exp() - dim / 2 * (log_variance + math.log(2 * math.pi))
