"""Features that were computed beforehand and come with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.alignment import Features

__all__ = ["Stored"]


@dataclass(frozen=True)
class Stored:
    """The condition `features` [B, grid^2, dim], for data whose images are not at hand, such as latents.

    The data set `latents` gives them with features = True.

    Attributes:
        dim: numbers of a token; 768 for DINOv2-B.
        grid: tokens on a side.
        cls: a class token [B, dim] is stored before the others, as row 0 of [B, 1 + grid^2, dim]; `gen encode
            --features` stores that of an encoder which has one.
    """

    reads: ClassVar[str] = "features"

    dim: int = 768
    grid: int = 16
    cls: bool = False

    def __post_init__(self) -> None:
        check_fields(self, dim="[1, inf)", grid="[1, inf)")

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the module that splits them."""
        return SplitFeatures(self)


class SplitFeatures(nn.Module):
    """Stored features [B, grid^2 or one more, dim] to Features."""

    def __init__(self, spec: Stored):
        super().__init__()
        self.shape = (spec.grid**2 + spec.cls, spec.dim)
        self.cls = spec.cls

    def forward(self, stored: Tensor) -> Features:
        if tuple(stored.shape[1:]) != self.shape:
            given, allowed = list(stored.shape), ["B", *self.shape]
            raise UserError(f"the data's features have shape {given}; encoder.dim, .grid and .cls say {allowed}")
        return Features(stored[:, 1:], stored[:, 0]) if self.cls else Features(stored, None)
