"""The Frechet distance class by class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.fid import fourth_root, influence
from gen.eval.metrics.lib.moments import Moments, value_of

__all__ = ["ClassFID"]


@dataclass(frozen=True)
class ClassFID:
    """The mean over labels of the Frechet distance between samples and real images of a label.

    Each label has as many samples as real images, drawn at random from the larger set. With few of them the distance is
    mostly bias, exact but of low rank, and never comparable with that of all labels together: read it beside its floor,
    the same distance after samples and real images of a label are exchanged at random.

    Labels are what they are, so standard errors are those of the labels' values, which are independent: each the delta
    method's over its samples and, where real images are drawn, over that draw,
    sd(IF)^2 / n + sd(IF_r)^2 / n (1 - n / M) for n of M, with influences as FID has them. Right where distances are far
    above the floor; near it they are quadratic in the errors of both sets, and this is up to sqrt 2 too large. The
    floor is all quadratic: there the influences have twice the variance, which is divided by 2.

    Attributes:
        least: images of a label, of each kind; labels with fewer are left out.
        seed: of the draws.
    """

    columns: ClassVar = (
        Column(
            "class_fid",
            "Class FID",
            note="mean over labels of the Fréchet distance within a label, equal numbers of both; with few mostly bias",
            priority=32,
        ),
        Column(
            "class_fid_floor",
            "Class FID floor",
            higher_is_better=None,
            note="the same distance after samples and real images of each label are exchanged at random",
            priority=31,
        ),
    )
    needs: ClassVar = "labelled_features"
    default: ClassVar = False

    least: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, least="[2, inf)", seed="[0, inf)")

    def __call__(
        self, samples: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor
    ) -> tuple[Estimate, Estimate]:
        """Compute it from features [N, D], labels [N], reference features [M, D] and their labels [M]."""
        values, floors, n = [], [], len(samples)
        for label, (x, y, drawn) in self._pairs(samples, labels, reference, reference_labels):
            values.append(estimated(x, y, drawn))
            both = torch.cat([x, y])[torch.randperm(2 * len(x), generator=self._generator(label))]
            value, *variances = distance_and_variances(both[: len(x)], both[len(x) :])
            floors.append(Estimate(value, (sum(variances) / 2) ** 0.5, 2 * len(x)))
        return mean_of(values, n), mean_of(floors, n)

    def by_class(
        self, samples: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor
    ) -> dict[int, Estimate]:
        """Return the distance of each label.

        Args:
            samples: features [N, D].
            labels: of the samples, int64 [N].
            reference: features of the real images [M, D].
            reference_labels: theirs, int64 [M].

        Raises:
            UserError: if no label has enough of both.
        """
        pairs = self._pairs(samples, labels, reference, reference_labels)
        return {label: estimated(x, y, drawn) for label, (x, y, drawn) in pairs}

    def _pairs(
        self, x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor, float]]]:
        """Yield equal numbers of samples and real images of each label, and the share of the latter that is drawn."""
        check_rows("class_fid", x, y)
        if x_labels.shape != x.shape[:1] or y_labels.shape != y.shape[:1]:
            raise UserError(
                f"class_fid: labels {list(x_labels.shape)}, {list(y_labels.shape)} of {len(x)} and {len(y)} images"
            )
        found = False
        for label in sorted({*x_labels.tolist()} & {*y_labels.tolist()}):
            sets = [(labels == label).nonzero()[:, 0] for labels in (x_labels, y_labels)]
            size = min(map(len, sets))
            if size >= self.least:
                random = self._generator(label)
                chosen = [ids[torch.randperm(len(ids), generator=random)[:size].sort().values] for ids in sets]
                found = True
                yield label, (x[chosen[0]], y[chosen[1]], size / len(sets[1]))
        if not found:
            raise UserError(f"class_fid: no label has {self.least} samples and {self.least} real images")

    def _generator(self, label: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1_000_003 * (label + 1))


def estimated(x: Tensor, y: Tensor, drawn: float) -> Estimate:
    """Return the distance of a label.

    Args:
        x: samples [n, D].
        y: real images [n, D].
        drawn: share of all real images of the label that they are.
    """
    value, own, real = distance_and_variances(x, y)
    return Estimate(value, (own + (1 - drawn) * real) ** 0.5, len(x))


def distance_and_variances(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return the squared Frechet distance of two sets, and its variance by the delta method over each of them.

    Args:
        x: rows [n, D].
        y: rows [n, D].
    """
    a, b = Moments.of_rows(x), Moments.of_rows(y)
    product, shift = a.factor @ b.factor.T, a.mean - b.mean
    own = influence(x, None, a, fourth_root(product @ product.T), shift).var()
    real = influence(y, None, b, fourth_root(product.T @ product), -shift).var()
    return value_of(a, b, torch.linalg.svdvals(product)), float(own) / len(x), float(real) / len(y)


def mean_of(estimates: list[Estimate], n: int) -> Estimate:
    """Return the mean of independent estimates.

    Args:
        estimates: each with a standard error.
        n: samples behind them.
    """
    count = len(estimates)
    mean, variance = sum(e.value for e in estimates) / count, sum((e.se or 0.0) ** 2 for e in estimates)
    return Estimate(mean, variance**0.5 / count, n)
