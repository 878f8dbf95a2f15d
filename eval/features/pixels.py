"""Pixels as features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pixels"]


@dataclass(frozen=True)
class Pixels:
    """The identity: uint8 images [B, C, H, W] to pixels in [0, 1], flattened, float32 [B, C H W]. It has no weights."""

    def load(self) -> Pixels:
        return self

    @property
    def name(self) -> str:
        return "pixels"

    @property
    def sha256(self) -> str:
        return ""

    def __call__(self, images: Tensor) -> Tensor:
        return images.cpu().to(torch.float32).flatten(1) / 255
