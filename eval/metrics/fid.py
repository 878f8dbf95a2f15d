"""The Frechet distance; the FID of the literature when the features are Inception's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.metrics import Column, Estimate, check_rows

__all__ = ["FID", "Moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """A mean and a factored covariance, in float64.

    Attributes:
        mean: [D].
        factor: [K, D], K = min(N, D); the covariance is factor^T factor.
        basis: [N, K] with orthonormal columns; centred rows are sqrt(N - 1) basis factor. None if only the covariance
            is known.
    """

    mean: Tensor
    factor: Tensor
    basis: Tensor | None = None

    @classmethod
    def of_rows(cls, x: Tensor) -> Moments:
        """Compute the moments of float64 rows [N, D]; the covariance is the unbiased one (N - 1).

        The factor is the R of a QR decomposition, the Cholesky factor of the covariance without squaring its condition
        number first; it exists for any rank, so nothing is ever added to the diagonal. With N <= D the rows are
        the factor themselves.
        """
        mean = x.mean(0)
        centred = (x - mean) / (len(x) - 1) ** 0.5
        if len(x) <= x.shape[1]:
            return cls(mean, centred, torch.eye(len(x), dtype=x.dtype, device=x.device))
        basis, factor = torch.linalg.qr(centred)
        return cls(mean, factor, basis)

    @classmethod
    def of_covariance(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """Factor a mean [D] and covariance [D, D], as published reference files hold them.

        Cholesky; if the matrix is not positive definite in float64, eigenvalues with the negative ones set to zero.
        Raises UserError for one that is not finite, not symmetric (1e-6), or clearly indefinite (1e-3 of the largest).
        """
        mean, covariance = mean.double(), covariance.double()
        if covariance.shape != (len(mean), len(mean)):
            raise UserError(f"fid: mean {list(mean.shape)} with covariance {list(covariance.shape)}")
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise UserError("fid: the reference moments are not finite")
        scale = float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > 1e-6 * scale:
            raise UserError("fid: the reference covariance is not symmetric")
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if not int(failed):
            return cls(mean, lower.T)
        values, vectors = torch.linalg.eigh(covariance)
        if float(values[0]) < -1e-3 * scale:
            raise UserError(f"fid: the reference covariance has the eigenvalue {float(values[0]):.3g}, below zero")
        return cls(mean, values.clamp(min=0).sqrt()[:, None] * vectors.T)


@dataclass(frozen=True)
class FID:
    """The squared Frechet distance |m - m_r|^2 + tr S + tr S_r - 2 tr (S S_r)^(1/2) between two sets of features.

    Dowson & Landau 1982; Heusel et al. 2017; in float64. The last trace is the nuclear norm of factor factor_r^T: one
    SVD of a small matrix, exact also with fewer rows than dimensions, and never complex. Not negative: rounding below
    zero becomes zero.

    The standard error is that of the delta method: sd(IF) / sqrt(N) with the influence of a sample x
    IF(x) = 2 (m - m_r)^T (x - m) + (x - m)^T (I - T) (x - m), T the optimal transport map from N(m, S) to N(m_r, S_r).
    It says nothing of the bias, which falls as 1/N; with N <= D it is only an indication.
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
        check_rows("fid", samples, reference.mean.expand(2, -1) if isinstance(reference, Moments) else reference)
        rows = samples.double()
        reference = reference if isinstance(reference, Moments) else Moments.of_rows(reference.double())
        ours = Moments.of_rows(rows)
        value, rotation, singular = distance(ours, reference)
        assert ours.basis is not None
        n = len(rows)
        centred = rows - ours.mean
        # (x - m)^T T (x - m) needs no inverse of S: T = F^-1 U s U^T F^-T, and F^-T (x - m) = sqrt(N - 1) basis
        transported = (n - 1) * ((ours.basis @ rotation) ** 2 * singular).sum(1)
        influence = 2 * centred @ (ours.mean - reference.mean) + (centred**2).sum(1) - transported
        return Estimate(value, float(influence.std()) / n**0.5, n)


def distance(a: Moments, b: Moments) -> tuple[float, Tensor, Tensor]:
    """Return the squared distance, and of a.factor b.factor^T left singular vectors [K, R] and singular values [R]."""
    left, singular, _ = torch.linalg.svd(a.factor @ b.factor.T, full_matrices=False)
    traces = (a.factor**2).sum() + (b.factor**2).sum() - 2 * singular.sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + traces), 0.0), left, singular
