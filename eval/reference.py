"""Real images: both splits of a data set as a metric sees them, and how far apart they are from each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.images import to_uint8
from gen.config.spec import build, spec_of
from gen.eval.estimate import Estimate
from gen.eval.features.pixels import Pixels
from gen.eval.metrics.accuracy import Accuracy
from gen.eval.metrics.frechet import Frechet
from gen.eval.metrics.kid import KID
from gen.eval.metrics.nearest import Nearest

__all__ = ["DataSet", "Extractor", "Reference", "Split", "stack"]


class DataSet(Protocol):
    """What gen/data plug-ins open: items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d or absent}."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Tensor]: ...


class Extractor(Protocol):
    """What a file of features/ loads: uint8 images [B, C, H, W] -> float32 features [B, D], row by row."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Real images uint8 [N, C, H, W], their labels [N] if they have any, and their features [N, D]."""

    images: Tensor
    labels: Tensor | None
    features: Tensor
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Reference:
    """The split that samples are compared with, and the other one.

    data: the spec it was opened from. real: the reference proper. train: the images a model may have learned by heart.
    """

    data: dict[str, Any]
    extractor: Extractor
    split: str
    train: Split
    test: Split

    @classmethod
    def open(cls, data: Any, split: str = "test", extractor: Any = "digits_cnn") -> Reference:
        """Of a data set and an extractor, each a name, a spec, or an object."""
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split!r}. {nearest(split, ['train', 'test'])}")
        source, extract = build("data", data), build("eval.features", extractor).load()
        opened = {}
        for name in ("train", "test"):
            items = source.open(name)
            images, labels = stack(items)
            opened[name] = Split(images, labels, extract(images), items.fingerprint)
        return cls(spec_of(source), extract, split, **opened)

    @property
    def real(self) -> Split:
        return self.train if self.split == "train" else self.test

    @property
    def other(self) -> Split:
        return self.test if self.split == "train" else self.train

    def floor(self) -> dict[str, Estimate]:
        """What real images score: those of the other split, and for accuracy and nearest always the held-out ones."""
        found = {
            "fid": Frechet()(self.other.features, self.real.features),
            "kid": KID()(self.other.features, self.real.features),
            "nearest": Nearest()(Pixels()(self.test.images), Pixels()(self.train.images)),
        }
        if self.test.labels is not None and hasattr(self.extractor, "head"):  # it learned the training labels
            found["accuracy"] = Accuracy()(self.extractor.head(self.test.features), self.test.labels)
        return found


def stack(data: DataSet) -> tuple[Tensor, Tensor | None]:
    """The whole data set: uint8 images [N, C, H, W], rounded as samples are, and labels [N] if it has them."""
    items = [data[i] for i in range(len(data))]
    images = torch.stack([to_uint8(item["x"]) for item in items])
    return images, torch.stack([item["y"] for item in items]) if "y" in items[0] else None
