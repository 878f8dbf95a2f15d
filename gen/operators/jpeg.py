"""JPEG compression."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.images import from_pil, to_pil, to_uint8
from gen.operators.lib.operator import Operator

__all__ = ["JPEG", "Compression"]

SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


@dataclass(frozen=True)
class JPEG:
    """A picture in [-1, 1], rounded to 8 bits, compressed and decoded by Pillow; y is a picture too, and its own pinv.

    Attributes:
        quality: libjpeg's.
        subsampling: of the colours.
    """

    quality: int = 10
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"

    def __post_init__(self) -> None:
        check_fields(self, quality="[1, 100]")

    def on(self, shape: tuple[int, ...]) -> Compression:
        """Return the operator on samples [1, H, W] or [3, H, W]."""
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(f"JPEG: it is of pictures [1, H, W] or [3, H, W], not of {list(shape)}")
        return Compression(shape, self.quality, self.subsampling)


class Compression(Operator):
    """JPEG at one quality: a projection but for rounding, without a derivative.

    Args:
        shape: of one sample.
        quality, subsampling: see JPEG.
    """

    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], quality: int, subsampling: str) -> None:
        super().__init__(shape, shape)
        self.options = {"quality": quality, "subsampling": SUBSAMPLING[subsampling]}

    def A(self, x: Tensor) -> Tensor:
        return torch.stack([self._one(image) for image in to_uint8(x.detach()).cpu()]).to(x)

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def _one(self, image: Tensor) -> Tensor:
        from PIL import Image

        data = io.BytesIO()
        to_pil(image).save(data, "JPEG", **self.options)
        return from_pil(Image.open(data, formats=["JPEG"]), len(image))
