"""sFID: the Frechet distance of spatial features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gen.eval.metrics import Column
from gen.eval.metrics.fid import FID

__all__ = ["SFID"]


@dataclass(frozen=True)
class SFID(FID):
    """FID of features that keep where things are in the picture (Nash et al. 2021).

    Of the inception extractor, the first 7 channels of Mixed_6d's 1x1 branch at 17 x 17 positions, 2023 numbers, as in
    ADM's evaluation.
    """

    columns: ClassVar = (
        Column("sfid", "sFID", note="Fréchet distance between spatial features of the extractor", priority=96),
    )
    needs: ClassVar = "spatial"
    default: ClassVar = False
