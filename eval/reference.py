"""Real images: a data set as the bytes that a metric sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from gen.images import to_uint8

__all__ = ["DataSet", "stack"]


class DataSet(Protocol):
    """What gen/data plug-ins open: items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d or absent}."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Tensor]: ...


def stack(data: DataSet) -> tuple[Tensor, Tensor | None]:
    """The whole data set: uint8 images [N, C, H, W], rounded as samples are, and labels [N] if it has them."""
    items = [data[i] for i in range(len(data))]
    images = torch.stack([to_uint8(item["x"]) for item in items])
    return images, torch.stack([item["y"] for item in items]) if "y" in items[0] else None
