"""The Frechet distance to the training images, which shows overfitting beside that to held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gen.eval.metrics import Column
from gen.eval.metrics.fid import FID

__all__ = ["FIDTrain"]


@dataclass(frozen=True)
class FIDTrain(FID):
    """FID against the training images, whichever split is the reference."""

    columns: ClassVar = (
        Column("fid_train", "FID train", note="the same distance to the training images", priority=40),
    )
    needs: ClassVar = "train_features"
