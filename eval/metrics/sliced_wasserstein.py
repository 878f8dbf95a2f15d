"""The sliced Wasserstein distance, with control variates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, blocks, check_rows
from gen.eval.metrics.lib.rows import subset

__all__ = ["SlicedWasserstein"]

AT_ONCE = 64  # directions


@dataclass(frozen=True)
class SlicedWasserstein:
    """The mean over unit directions of the squared Wasserstein distance W_2^2 of the sets' projections.

    Bonneel et al. 2015; control variates of Nguyen & Ho 2023: of the fitted normal distributions' distance two
    quadratic forms of the direction t have known means, g_L = (t.m)^2, E g_L = |m|^2 / D, and
    g_U = (t.m)^2 + t^T (S + S_r) t, E g_U = (|m|^2 + tr S + tr S_r) / D, where m is the difference of means. What the
    distance varies with them over directions is taken off. Their published code returns the square root. The standard
    error is that of the directions and, to first order, that of the samples: sd of the mean Kantorovich potential.

    Attributes:
        directions: number of them.
        control: "lower" (g_L), "upper" (g_U), "both" by joint regression, or "none".
        seed: of the directions, and of the subset of the larger set, so that both are of one size.
    """

    columns: ClassVar = (
        Column("sw2", "SW²", note="squared sliced Wasserstein distance between features", priority=26),
    )
    needs: ClassVar = "features"
    default: ClassVar = False

    directions: int = 1000
    control: Literal["none", "lower", "upper", "both"] = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, directions="[4, inf)", seed="[0, 4294967295]")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D]."""
        check_rows("sw2", samples, reference)
        n, d = min(len(samples), len(reference)), samples.shape[1]
        sets = [(rows, None if len(rows) == n else subset(len(rows), n, self.seed)) for rows in (samples, reference)]
        generator = torch.Generator().manual_seed(self.seed)
        t = torch.randn(self.directions, d, generator=generator, dtype=torch.float64)
        t /= t.norm(dim=1, keepdim=True)
        distances, lower, upper = [], [], []
        potential = torch.zeros(n, dtype=torch.float64)
        for part in t.split(AT_ONCE):
            a, b = (torch.cat([block @ part.T for block in blocks(*rows)]) for rows in sets)  # [n, directions]
            lower.append((a.mean(0) - b.mean(0)) ** 2)
            upper.append(lower[-1] + a.var(0, correction=0) + b.var(0, correction=0))
            ordered, which = a.sort(0)
            gaps = ordered - b.sort(0).values
            distances.append((gaps**2).mean(0))
            steps = (ordered[1:] - ordered[:-1]) * (gaps[1:] + gaps[:-1])  # of the potential, whose slope is 2 gaps
            heights = torch.cat([torch.zeros(1, steps.shape[1], dtype=torch.float64), steps.cumsum(0)])
            potential += torch.zeros_like(a).scatter_(0, which, heights).sum(1) / self.directions
        shift, spreads = squared_shift_and_spread(sets, n)
        forms = {"lower": [(torch.cat(lower), shift / d)], "upper": [(torch.cat(upper), (shift + spreads) / d)]}
        forms |= {"none": [], "both": forms["lower"] + forms["upper"]}
        value, of_directions = controlled(torch.cat(distances), forms[self.control])
        return Estimate(value, (of_directions**2 + float(potential.var()) / n) ** 0.5, len(samples))


def squared_shift_and_spread(sets: Sequence[tuple[Tensor, Tensor | None]], n: int) -> tuple[float, float]:
    """Return |m|^2 of the difference of means, and tr S + tr S_r with 1 / n.

    Args:
        sets: rows of each set [N, D], and the indices of those that count, int64 [n]; None for all.
        n: rows that count of each set.
    """
    means = [torch.stack([block.sum(0) for block in blocks(*rows)]).sum(0) / n for rows in sets]
    spreads = [
        sum(float(((block - mean) ** 2).sum()) for block in blocks(*rows)) / n
        for rows, mean in zip(sets, means, strict=True)
    ]
    return float(((means[0] - means[1]) ** 2).sum()), sum(spreads)


def controlled(values: Tensor, forms: list[tuple[Tensor, float]]) -> tuple[float, float]:
    """Return the mean of values less what control variates explain of it, and its standard error.

    With one variate the slope is the published one, whose mean is the exact one; with several, least squares.

    Args:
        values: one for each direction, [L].
        forms: control variates [L], each with its exact mean.
    """
    deviation = values - values.mean()
    explained = torch.zeros_like(values)
    if len(forms) == 1:
        g = forms[0][0] - forms[0][1]
        explained = (deviation * g).mean() / ((g**2).mean() + 1e-24) * g
    elif forms:
        g = torch.stack([variate - mean for variate, mean in forms], 1)  # [L, 2]
        slope = torch.linalg.lstsq(g - g.mean(0), deviation[:, None], driver="gelsd").solution
        explained = (g @ slope)[:, 0]
    left = values - explained
    return float(left.mean()), float(left.std()) / len(values) ** 0.5
