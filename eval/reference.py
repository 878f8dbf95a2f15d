"""Real images: both splits of a data set as metrics see them, and how far they are from each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.fields import build_with
from gen.config.images import to_uint8
from gen.config.spec import Json, anchored, build, name_of, spec_of
from gen.eval.features import Classifier, Extractor
from gen.eval.metrics import NEEDS, Estimate, Metric

__all__ = ["DataSet", "RealImages", "Reference", "SampleRows", "stack"]

SPLITS = ("train", "test", "all")
ROWS = ("labels", "spatial", "embeddings", "prompts", "targets")  # that not every set has


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

    def rows(self, name: str) -> Tensor | None:
        """Return the rows of all samples in order.

        Args:
            name: features, images, labels or targets.

        Returns:
            [N, ...], on the CPU; None if there are none.
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

    def rows(self, name: str) -> Tensor | None:
        return getattr(self, name, None)


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images that samples are compared with: a split of a data set, or all of it.

    Attributes:
        data: spec of the data set.
        extractor: that features come from.
        split: "train", "test" or "all": the reference proper.
        train: the images that a model may have memorised; None if the set is used whole.
        test: held-out images; None if the set is used whole.
        extractor_spec: of the extractor.
        floors: scores of real images that were computed already, by the metric's spec.
        whole: all images, if the set is used whole.
    """

    data: Json
    extractor: Extractor
    split: str
    train: RealImages | None
    test: RealImages | None
    extractor_spec: object
    floors: dict[str, Sequence[Estimate]] = field(default_factory=dict)
    whole: RealImages | None = None

    @classmethod
    def open(cls, data: object, split: str = "test", extractor: object = None, batch_size: int = 250) -> Reference:
        """Open a data set for an extractor, each given as a name, a spec, or an object.

        A reference that is a file or a folder is used whole: of a source with a `holdout`, the share that a training
        leaves out, only a spec that states it (as a run's own data do), or an object in which it is not the default,
        is split. Other sources have the splits that they have.

        Args:
            data: of gen.data.
            split: "train" or "test", the images that samples are compared with; "all" uses the set whole.
            extractor: of gen.eval.features; None for digits_cnn where images are [1, 8, 8], else pixels.
            batch_size: images at a time, in the extractor.

        Raises:
            UserError: for a split, a data set or an extractor that there is not, and for images that do not go with it.
        """
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}. {nearest(split, SPLITS)}")
        spec = None if extractor is None else build_with("eval.features", extractor, "load", "extractor")
        source = build_with("data", data, "shape open", "data")
        if not getattr(source, "pictures", True) or len(source.shape) != 3 or source.shape[0] not in (1, 3):
            given = f"{name_of(type(source))} holds {list(source.shape)}"
            raise UserError(f"{given}, latents or other tensors, no pictures: give the real pictures")
        if split == "all" and "holdout" not in defaults(source):
            raise UserError(f"split 'all': {name_of(type(source))} has fixed splits. {nearest('all', SPLITS[:2])}")
        if split == "all" or used_whole(data, source):
            source, split = replace(source, holdout=0.0), "all"
        if spec is None:
            spec = build("eval.features", "digits_cnn" if tuple(source.shape) == (1, 8, 8) else "pixels")
        extract, opened = spec.load(), {}
        for name in ("train",) if split == "all" else ("train", "test"):
            items = source.open(name)
            images, labels = stack(items)
            features = torch.cat([extract(part) for part in images.split(batch_size)])
            opened[name] = RealImages(images, labels, features, items.fingerprint)
        train = None if split == "all" else opened["train"]
        whole = opened["train"] if split == "all" else None
        return cls(anchored(spec_of(source)), extract, split, train, opened.get("test"), spec, whole=whole)

    @property
    def real(self) -> RealImages:
        real = {"train": self.train, "test": self.test, "all": self.whole}[self.split]
        assert real is not None  # as `open` leaves it
        return real

    @property
    def other(self) -> RealImages | None:
        return {"train": self.test, "test": self.train, "all": None}[self.split]

    def inputs(self, needs: str, samples: SampleRows) -> list[Tensor | None]:
        """Return what a metric of these needs is called with, see gen.eval.metrics."""
        return [self._argument(one.removesuffix("?"), samples) for one in NEEDS[needs]]

    def _argument(self, name: str, samples: SampleRows) -> Tensor | None:
        owner, _, rows = name.rpartition(".")
        if name == "logits":
            features = samples.rows("features")
            assert isinstance(self.extractor, Classifier) and features is not None  # see obstacle
            return self.extractor.head(features)
        real = {"": samples, "reference": self.real, "train": self.train}[owner]
        assert real is not None  # see obstacle
        return real.rows(rows)

    def obstacle(self, needs: str, kept: Sequence[str]) -> str | None:
        """Return the reason why a metric of these needs cannot be computed from samples with these rows, or None."""
        arguments = NEEDS[needs]
        if "logits" in arguments and not isinstance(self.extractor, Classifier):
            return f"the extractor {self.extractor.name} is no classifier"
        if "labels" in arguments and "labels" not in kept:
            return "the samples have no labels"
        if "reference.labels" in arguments and self.real.labels is None:
            return "the reference images have no labels"
        if "train.features" in arguments and self.train is None:
            return "the data set is used whole as the reference, so no training images stand beside it"
        if "targets" in arguments and "targets" not in kept:
            return 'the samples have no targets, images in cond["target"]'
        for one, method in (("spatial", "spatial"), ("embeddings", "text")):
            if one in arguments and not hasattr(self.extractor, method):
                return f"the extractor {self.extractor.name} has no {method}"
        return None

    def floor(self, metric: Metric) -> Sequence[Estimate | None]:
        """Return a metric of real images: of the other split, or of held-out ones against what was learned.

        None where real images have no such score.
        """
        arguments = NEEDS[metric.needs]
        held_out = "train.features" in arguments or not any(one.startswith("reference") for one in arguments)
        samples = self.test if held_out else self.other
        if samples is None or any(samples.rows(one) is None for one in arguments if one in ROWS):
            return [None] * len(metric.columns)
        key = json.dumps(spec_of(metric), sort_keys=True)
        if key not in self.floors:
            self.floors[key] = measure(metric, *self.inputs(metric.needs, samples))
        return self.floors[key]


def used_whole(data: object, source: Any) -> bool:
    """Return whether a data source is used whole: its holdout is 0, or is the default that nobody stated.

    Args:
        data: name, spec or object, as it was given.
        source: what was built of it.
    """
    if "holdout" not in defaults(source) or getattr(source, "test_path", None) is not None:
        return False
    stated = "holdout" in data if isinstance(data, Mapping) else source.holdout != defaults(source)["holdout"]
    return not (stated and source.holdout)


def defaults(source: Any) -> Json:
    return {f.name: f.default for f in dataclasses.fields(source)}


def measure(metric: Metric, *arguments: object) -> Sequence[Estimate]:
    """Return a metric's estimates, one for each column; UserError if one is not finite."""
    result = metric(*arguments)
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
