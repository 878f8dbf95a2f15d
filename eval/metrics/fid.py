"""The Frechet distance; the FID of the literature when the features are Inception's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.moments import Moments, centred, reference_moments, value_of
from gen.eval.metrics.lib.rows import subset

__all__ = ["FID"]

INFLUENCES = 20_000  # samples from which the standard error is computed, drawn at random if there are more


@dataclass(frozen=True)
class FID:
    """The squared Frechet distance |m - m_r|^2 + tr S + tr S_r - 2 tr (S S_r)^(1/2) between two sets of features.

    Dowson & Landau 1982; Heusel et al. 2017; in float64. The last trace is the nuclear norm of factor factor_r^T: one
    SVD of a small matrix, exact also with fewer rows than dimensions, and never complex. Not negative: rounding below
    zero becomes zero.

    The standard error is that of the delta method: sd(IF) / sqrt(N) with the influence of a sample x
    IF(x) = 2 (m - m_r)^T (x - m) + (x - m)^T (I - T) (x - m), T the optimal transport map from N(m, S) to N(m_r, S_r).
    With F F_r^T = U s V^T for the factors F of S and F_r of S_r, T = F^-1 U s U^T F^-T: one triangular solve, and one
    product of each block of rows. From more than 20,000 samples as many are drawn for it (a percent or two). It says
    nothing of the bias, which falls as 1/N; with N <= D it is only an indication.
    """

    columns: ClassVar = (
        Column(
            "fid",
            "FID",
            note="Fréchet distance to the real images between features of the extractor named above the table",
            priority=100,
        ),
    )
    needs: ClassVar = "features"
    moments: ClassVar = True

    def __call__(self, samples: Tensor, reference: Tensor | Moments) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], or their moments."""
        reference = reference_moments(self.columns[0].key, samples, reference)
        ours, n = Moments.of_rows(samples), len(samples)
        product = ours.factor @ reference.factor.T
        value, shift = value_of(ours, reference, torch.linalg.svdvals(product)), ours.mean - reference.mean
        squares = product @ product.T
        del reference, product  # each is a third of all that follows
        weights = fourth_root(squares)
        del squares
        chosen = None if n <= max(INFLUENCES, samples.shape[1]) else subset(n, INFLUENCES, 0)
        spread = influence(samples, chosen, ours, weights, shift).std()
        return Estimate(value, float(spread) / n**0.5, n)


def fourth_root(squares: Tensor) -> Tensor:
    """Return U s^(1/2) for U s^2 U^T = squares, [K, K], with 0 for what is rounding alone.

    Args:
        squares: product product^T, [K, K]. Its eigenvectors take half the time and memory of a decomposition of the
            product with both sides' vectors.
    """
    values, left = torch.linalg.eigh(squares)
    limit = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return left.mul_(torch.where(values > limit, values, 0.0) ** 0.25)


def influence(samples: Tensor, chosen: Tensor | None, ours: Moments, weights: Tensor, shift: Tensor) -> Tensor:
    """Return the influence of each sample on the distance, less a constant, [N].

    Args:
        samples: [N, D].
        chosen: those that it is computed for; None for all.
        ours: moments of all samples.
        weights: U s^(1/2), [K, R].
        shift: m - m_r, [D].
    """
    n, d = samples.shape
    transport = ours.whitened(weights) if n > d else None
    influences, first = torch.empty(n if chosen is None else len(chosen), dtype=torch.float64), 0
    for part in centred(samples, ours.mean, chosen):
        of_part = influences[first : first + len(part)]
        of_part[:] = 2 * (part @ shift) + torch.linalg.vecdot(part, part)
        if transport is not None:
            moved = part @ transport
            of_part -= torch.linalg.vecdot(moved, moved)
        first += len(part)
    # of rows that are the factor themselves, x - m = z F has z = sqrt(N - 1) times a unit vector
    return influences - (0 if transport is not None else (n - 1) * (weights**2).sum(1))
