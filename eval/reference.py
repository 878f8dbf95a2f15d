"""Real images: both splits of a data set as metrics see them, and how far they are from each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.images import to_uint8
from gen.config.spec import Json, build, name_of, spec_of
from gen.eval.features import Classifier, Extractor
from gen.eval.features.pixels import Pixels
from gen.eval.metrics import Estimate, Metric

__all__ = ["DataSet", "RealImages", "Reference", "SampleRows", "stack"]


class DataSet(Protocol):
    """A data set as gen/data plug-ins open it: items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d or absent}."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, i: int) -> Mapping[str, Tensor]:
        """Return item i.

        Args:
            i: 0 .. len - 1.
        """
        ...


class SampleRows(Protocol):
    """Rows of a set of samples under the names of gen.eval.metrics.NEEDS."""

    def rows(self, name: str) -> Tensor:
        """Return the rows of all samples in order.

        Args:
            name: features, pixels, labels or targets.

        Returns:
            [N, ...], on the CPU.
        """
        ...


@dataclass(frozen=True, eq=False)
class RealImages:
    """A split of real images.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N]; None if they have none.
        features: float32 [N, D].
        fingerprint: digest of the data set's content.
    """

    images: Tensor
    labels: Tensor | None
    features: Tensor
    fingerprint: str

    @cached_property
    def pixels(self) -> Tensor:
        return Pixels()(self.images)

    def rows(self, name: str) -> Tensor:
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class Reference:
    """The split that samples are compared with, and the other one.

    Attributes:
        data: spec of the data set.
        extractor: that features come from.
        split: "train" or "test": the reference proper.
        train: the images that a model may have memorised.
        test: held-out images.
        extractor_name: by which its spec is found.
        floors: scores of real images that were computed already, by the metric's spec.
    """

    data: Json
    extractor: Extractor
    split: str
    train: RealImages
    test: RealImages
    extractor_name: str
    floors: dict[str, Sequence[Estimate]] = field(default_factory=dict)

    @classmethod
    def open(cls, data: object, split: str = "test", extractor: object = "digits_cnn") -> Reference:
        """Open both splits of a data set for an extractor, each given as a name, a spec, or an object."""
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split!r}. {nearest(split, ['train', 'test'])}")
        source, spec = build("data", data), build("eval.features", extractor)
        extract = spec.load()
        opened = {}
        for name in ("train", "test"):
            items = source.open(name)
            images, labels = stack(items)
            opened[name] = RealImages(images, labels, extract(images), items.fingerprint)
        return cls(spec_of(source), extract, split, opened["train"], opened["test"], name_of(type(spec)))

    @property
    def real(self) -> RealImages:
        return self.train if self.split == "train" else self.test

    @property
    def other(self) -> RealImages:
        return self.test if self.split == "train" else self.train

    def inputs(self, needs: str, samples: SampleRows) -> tuple[Tensor, Tensor]:
        """Return what a metric of these needs is called with, see gen.eval.metrics."""
        if needs == "logits" and isinstance(self.extractor, Classifier):
            return self.extractor.head(samples.rows("features")), samples.rows("labels")
        if needs == "pairs":
            return samples.rows("pixels"), samples.rows("targets")
        name = needs.removeprefix("train_")
        return samples.rows(name), (self.real if name == needs else self.train).rows(name)

    def obstacle(self, needs: str, kept: Sequence[str]) -> str | None:
        """Return the reason why a metric of these needs cannot be computed from samples with these rows, or None."""
        if needs == "logits" and not isinstance(self.extractor, Classifier):
            return f"the extractor {self.extractor.name} is no classifier"
        if needs == "logits" and "labels" not in kept:
            return "the samples have no labels"
        if needs == "pairs" and "targets" not in kept:
            return 'the samples have no targets, images in cond["target"]'
        return None

    def floor(self, metric: Metric) -> Sequence[Estimate | None]:
        """Return a metric of real images: of the other split, or of held-out ones against what was learned.

        None where real images have no such score.
        """
        samples = self.other if metric.needs in ("features", "pixels") else self.test
        if metric.needs == "pairs" or (metric.needs == "logits" and self.test.labels is None):
            return [None] * len(metric.columns)
        key = json.dumps(spec_of(metric), sort_keys=True)
        if key not in self.floors:
            self.floors[key] = measure(metric, *self.inputs(metric.needs, samples))
        return self.floors[key]


def measure(metric: Metric, samples: Tensor, reference: Tensor) -> Sequence[Estimate]:
    """Return a metric's estimates, one for each column; UserError if one is not finite."""
    result = metric(samples, reference)
    estimates = [result] if isinstance(result, Estimate) else list(result)
    for column, estimate in zip(metric.columns, estimates, strict=True):
        if not torch.tensor([estimate.value, estimate.se or 0.0]).isfinite().all():
            raise UserError(f"{column.key} of {estimate.n} samples is not finite: {estimate}")
    return estimates


def stack(data: DataSet) -> tuple[Tensor, Tensor | None]:
    """Stack a whole data set.

    Args:
        data: the items.

    Returns:
        Images uint8 [N, C, H, W], rounded as samples are, and labels int64 [N], None without them.
    """
    items = [data[i] for i in range(len(data))]
    images = torch.stack([to_uint8(item["x"]) for item in items])
    return images, torch.stack([item["y"] for item in items]) if "y" in items[0] else None
