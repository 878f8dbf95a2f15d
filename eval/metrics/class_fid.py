"""The Frechet distance class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.fid import FID
from gen.eval.metrics.lib.moments import Moments, distance

__all__ = ["ClassFID"]


@dataclass(frozen=True)
class ClassFID:
    """The mean over labels of the Frechet distance between samples and real images of a label.

    Each label has as many samples as real images, drawn at random from the larger set. With few of them the distance is
    mostly bias, exact but of low rank, and never comparable with that of all labels together: read it beside its floor,
    the same distance after samples and real images of a label are exchanged at random. The standard error is the spread
    of the labels' values.

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
        pairs, n = self._pairs(samples, labels, reference, reference_labels), len(samples)
        values, floors = [], []
        for label, (x, y) in pairs.items():
            values.append(distance(Moments.of_rows(x), Moments.of_rows(y)))
            both = torch.cat([x, y])[torch.randperm(2 * len(x), generator=self._generator(label))]
            floors.append(distance(Moments.of_rows(both[: len(x)]), Moments.of_rows(both[len(x) :])))
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
        return {label: FID()(x, y) for label, (x, y) in pairs.items()}

    def _pairs(self, x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return equal numbers of samples and real images of each label that has enough of both."""
        check_rows("class_fid", x, y)
        if x_labels.shape != x.shape[:1] or y_labels.shape != y.shape[:1]:
            raise UserError(
                f"class_fid: labels {list(x_labels.shape)}, {list(y_labels.shape)} of {len(x)} and {len(y)} images"
            )
        pairs = {}
        for label in sorted({*x_labels.tolist()} & {*y_labels.tolist()}):
            sets = [(labels == label).nonzero()[:, 0] for labels in (x_labels, y_labels)]
            size = min(map(len, sets))
            if size >= self.least:
                random = self._generator(label)
                chosen = [ids[torch.randperm(len(ids), generator=random)[:size].sort().values] for ids in sets]
                pairs[label] = x[chosen[0]], y[chosen[1]]
        if not pairs:
            raise UserError(f"class_fid: no label has {self.least} samples and {self.least} real images")
        return pairs

    def _generator(self, label: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1_000_003 * (label + 1))


def mean_of(values: list[float], n: int) -> Estimate:
    """Return a mean with the standard error that the spread of its terms gives; None of a single one.

    Args:
        values: terms.
        n: samples behind them.
    """
    x = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(x.mean()), float(x.std()) / len(x) ** 0.5 if len(x) > 1 else None, n)
