"""Means and covariances of large sets of rows, and of published files of statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.metrics import check_rows, pieces

__all__ = ["Moments", "centred", "distance", "reference_moments", "value_of"]

SUMMED = 1024  # rows


@dataclass(frozen=True, eq=False)
class Moments:
    """A mean and a factored covariance, in float64.

    Attributes:
        mean: [D].
        factor: [K, D]; the covariance is factor^T factor. With N <= D centred rows / sqrt(N - 1); else the upper
            Cholesky factor, or, of a singular covariance, its eigenvectors times their standard deviations.
    """

    mean: Tensor
    factor: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance, [D, D]."""
        return self.factor.T @ self.factor

    @classmethod
    def of_rows(cls, x: Tensor, chosen: Tensor | None = None) -> Moments:
        """Compute the moments of rows [N, D], N >= 2, or of those chosen; the covariance is the unbiased one (N - 1).

        Two passes over blocks of rows in a fixed order: the mean first, then centred products, which cancel nothing.
        Of N <= D rows the covariance is singular: they are the factor themselves, which is exact.
        """
        n, d = len(x if chosen is None else chosen), x.shape[1]
        sums = torch.empty(-(-n // SUMMED), d, dtype=torch.float64)
        for i, part in enumerate(pieces(x, chosen, SUMMED)):
            sums[i] = part.sum(0, dtype=torch.float64)
        mean = sums.sum(0) / n
        if n <= d:
            rows = torch.cat([part - mean for part in pieces(x, chosen)])
            return cls(mean, rows.div_((n - 1) ** 0.5))
        return cls(mean, factored(torch.from_numpy(centred_products(x, mean, chosen)).div_(n - 1)))

    @classmethod
    def of_covariance(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """Factor a mean [D] and covariance [D, D], as published files of statistics hold them.

        Raises UserError for one that is not finite, not symmetric (1e-6), or clearly indefinite (1e-3 of the largest).
        """
        mean, covariance = mean.double(), covariance.double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"fid: mean {list(mean.shape)} with covariance {list(covariance.shape)}")
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise UserError("fid: the reference moments are not finite")
        scale = float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > 1e-6 * scale:
            raise UserError("fid: the reference covariance is not symmetric")
        return cls(mean, factored(covariance))

    def whitened(self, weights: Tensor) -> Tensor:
        """Return G with (x - mean) G = z weights, where x - mean = z factor; for rows that are more than dimensions.

        Args:
            weights: [K, R].

        Returns:
            [D, R].
        """
        if self.factor.shape[0] == self.factor.shape[1] and not bool(self.factor.tril(-1).any()):
            return torch.linalg.solve_triangular(self.factor, weights, upper=True)
        return self.factor.T @ (weights / (self.factor**2).sum(1, keepdim=True))  # rows of the factor are orthogonal


def centred_products(x: Tensor, mean: Tensor, chosen: Tensor | None) -> np.ndarray:
    """Return the sum of the outer products of rows less their mean, float64 [D, D]."""
    products, of_block = (np.zeros((x.shape[1], x.shape[1])) for _ in range(2))  # of which one is returned
    for part in centred(x, mean, chosen):
        rows = part.numpy()
        products += np.matmul(rows.T, rows, out=of_block)  # numpy sees the symmetry, which halves the work
    return products


def centred(x: Tensor, mean: Tensor, chosen: Tensor | None = None) -> Iterator[Tensor]:
    """Iterate over blocks of rows less a mean, in float64, in one buffer: to be used before the next.

    Args:
        x: rows [N, D].
        mean: [D], float64.
        chosen: int64 [K], indices of rows; None for all.
    """
    buffer = torch.empty(0, dtype=torch.float64)
    for part in pieces(x, chosen):  # the first is the largest
        buffer = buffer if buffer.numel() else torch.empty(part.shape, dtype=torch.float64)
        yield torch.sub(part, mean, out=buffer[: len(part)])


def factored(covariance: Tensor) -> Tensor:
    """Return a factor [K, D] of a covariance [D, D]: covariance = factor^T factor.

    Upper Cholesky. Of a matrix that is singular in float64, eigenvectors times standard deviations, without those whose
    variance is rounding alone; nothing is ever added to the diagonal. UserError for an eigenvalue below -1e-3 of the
    largest entry.
    """
    scale, rounding = float(covariance.abs().max()), len(covariance) * torch.finfo(torch.float64).eps
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed) and float(lower.diagonal().min()) ** 2 > rounding * scale:
        return lower.T
    values, vectors = torch.linalg.eigh(covariance)
    if float(values[0]) < -1e-3 * scale:
        raise UserError(f"fid: the reference covariance has the eigenvalue {float(values[0]):.3g}, below zero")
    keep = values > rounding * scale
    return values[keep].sqrt()[:, None] * vectors.T[keep]


def distance(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of two normal distributions, not negative.

    Args:
        a, b: their moments, of the same D.
    """
    return value_of(a, b, torch.linalg.svdvals(a.factor @ b.factor.T))


def value_of(a: Moments, b: Moments, singular: Tensor) -> float:
    """Return the squared distance for known singular values.

    Args:
        a, b: moments, of the same D.
        singular: values of a.factor b.factor^T, [R].
    """
    traces = (a.factor**2).sum() + (b.factor**2).sum() - 2 * singular.sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + traces), 0.0)


def reference_moments(name: str, samples: Tensor, reference: Tensor | Moments) -> Moments:
    """Return the moments of a reference, after a check that samples can be compared with it.

    Args:
        name: of the metric, for messages.
        samples: rows [N, D].
        reference: rows [M, D], or their moments, as files of statistics hold them.

    Raises:
        UserError: if they cannot be compared.
    """
    if isinstance(reference, Tensor):
        check_rows(name, samples, reference)
        return Moments.of_rows(reference)
    if samples.ndim != 2 or samples.shape[1] != len(reference.mean):
        raise UserError(f"{name}: features {list(samples.shape)} against moments of {len(reference.mean)}")
    check_rows(name, samples, reference.mean.expand(2, -1))
    return reference
