"""Some pixels of a picture: inpainting, outpainting, and pixels lost at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Decomposed
from gen.operators.lib.masks import lama_mask
from gen.operators.lib.operator import spatial

__all__ = ["Inpaint", "Known"]


@dataclass(frozen=True)
class Inpaint:
    """The known pixels of a picture, with all their channels, by rows: y is [C, number of known pixels].

    Attributes:
        box: what is missing as (top, bottom, left, right), rows top to bottom - 1 and columns left to right - 1; None
            for the centre of half the height and width where neither `missing`, `file` nor `mask` says otherwise.
        missing: share of the pixels that are missing at random; None for none beside the others.
        file: picture of the sample's size whose bright pixels are missing; None for none beside the others.
        mask: "lama" for random strokes, boxes or borders that are missing, see lib.masks.lama_mask; None for none.
        outside: whether the others are missing instead: the box is known, what lies around it is painted.
        seed: of the random pixels and of the mask.
    """

    box: tuple[int, int, int, int] | None = None
    missing: float | None = None
    file: str | None = None
    mask: Literal["lama"] | None = None
    outside: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, box="[0, inf)", missing="[0, 1]", seed="[0, inf)")
        if self.box is not None and not (self.box[0] < self.box[1] and self.box[2] < self.box[3]):
            raise UserError(f"Inpaint: box = {list(self.box)}; it must be top < bottom, left < right")

    def on(self, shape: tuple[int, ...]) -> Known:
        """Return the operator on samples [C, H, W]; without box, file and mask of any number of spatial dimensions."""
        sizes = spatial(shape)
        missing = torch.zeros(sizes, dtype=torch.bool)
        given = [name for name in ("box", "file", "mask") if getattr(self, name) is not None]
        if len(sizes) != 2 and given:
            raise UserError(f"Inpaint: {given[0]} is of pictures [C, H, W], not of {list(shape)}")
        if self.box is not None:
            top, bottom, left, right = self.box
            if bottom > sizes[0] or right > sizes[1]:
                raise UserError(f"Inpaint: box = {list(self.box)} leaves the {sizes[0]} x {sizes[1]} pixels")
            missing[top:bottom, left:right] = True
        elif self.missing is None and not given:
            missing[tuple(slice(n // 4, n - n // 4) for n in sizes)] = True
        if self.missing is not None:
            draw = torch.rand(sizes, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
            missing |= draw < self.missing
        if self.file is not None:
            missing |= _bright(self.file, sizes)
        if self.mask is not None:
            missing |= lama_mask(sizes[0], sizes[1], self.seed)
        return Known(shape, missing if self.outside else ~missing)


class Known(Decomposed):
    """The numbers of a sample that a mask selects, channel by channel: y is [C, number of known ones].

    Args:
        shape: of one sample.
        known: mask of its spatial sizes, the same for every channel.
    """

    def __init__(self, shape: tuple[int, ...], known: Tensor) -> None:
        channels = tuple(shape[: len(shape) - known.dim()])
        self.known = known
        self.index = known.flatten().nonzero()[:, 0]
        super().__init__(shape, (*channels, len(self.index)), known.double().expand(shape))

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(-self.known.dim())[..., self._index(x)]

    def At(self, y: Tensor) -> Tensor:
        whole = y.new_zeros(*y.shape[:-1], self.known.numel())
        return whole.index_copy(-1, self._index(y), y).unflatten(-1, self.known.shape)

    def U(self, c: Tensor) -> Tensor:
        return self.A(c)

    def Ut(self, y: Tensor) -> Tensor:
        return self.At(y)

    def V(self, c: Tensor) -> Tensor:
        return c

    def Vt(self, x: Tensor) -> Tensor:
        return x

    def _index(self, x: Tensor) -> Tensor:
        return self.index.to(x.device)


def _bright(file: str, sizes: tuple[int, ...]) -> Tensor:
    """Return which pixels of a picture are bright [H, W]."""
    from gen.data.lib.pictures import open_picture

    picture = open_picture(Path(file)).convert("L")
    if (picture.height, picture.width) != sizes:
        raise UserError(f"{file}: {picture.height} x {picture.width} pixels; the sample has {sizes[0]} x {sizes[1]}")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(sizes) > 127
