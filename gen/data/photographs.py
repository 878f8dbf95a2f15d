"""Photographs: crops of the nine colour photographs that scikit-learn and scikit-image carry; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import package_file
from gen.data.lib.tensors import Tensors, check_split, content_hash

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Photographs"]

FILES = {  # photograph -> package, and the file in it
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}


@dataclass(frozen=True)
class Photographs:
    """Square colour crops of nine photographs, whose label is the photograph.

    A photograph is divided into tiles, of which every fifth is held out, evenly spread. A crop is "test" if it lies in
    a held-out tile, and "train" if it touches none: the two share no pixel. They share the scenes, so a good score
    says that crops of these nine scenes are imitated well, and nothing beyond.

    Attributes:
        size: side of a crop, pixels.
        side: the shorter side of a photograph when it is cropped, pixels; it is scaled to that first.
        tile: side of a tile, pixels, at least size.
        stride: distance between neighbouring crops, pixels.
    """

    label_names: ClassVar[tuple[str, ...]] = tuple(FILES)

    size: int = 32
    side: int = 192
    tile: int = 48
    stride: int = 4

    def __post_init__(self) -> None:
        check_fields(self, size="[4, inf)", side="[4, 4096]", stride="[1, inf)")
        if not self.size <= self.tile <= self.side:
            raise UserError(f"Photographs: tile = {self.tile}; allowed: from size = {self.size} to side = {self.side}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    @property
    def classes(self) -> int:
        return len(FILES)

    def open(self, split: str) -> Tensors:
        """Open "train" or "test"; UserError names the package that is missing."""
        check_split(split)
        crops = [self._crops(path, split) for path in paths()]
        x = torch.cat(crops)
        y = torch.arange(len(crops)).repeat_interleave(torch.tensor([len(some) for some in crops]))
        return Tensors(x, y, content_hash("photographs", x, y), shift=127.5, scale=1 / 127.5)

    def _crops(self, path: Path, split: str) -> Tensor:
        """Return a photograph's crops of a split, uint8 [N, 3, size, size], by rows."""
        from PIL import Image

        with Image.open(path) as picture:
            x = torch.frombuffer(bytearray(self._scaled(picture).tobytes()), dtype=torch.uint8)
            height, width = self._sides(picture)
        windows = x.view(height, width, 3).permute(2, 0, 1).unfold(1, self.size, self.stride)
        windows = windows.unfold(2, self.size, self.stride)  # [3, rows, columns, size, size]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        held_out = (rows // self.tile + 2 * (columns // self.tile)) % 5 == 0
        share = avg_pool2d(held_out[None].double(), self.size, self.stride)[0]
        keep = share == 1 if split == "test" else share == 0  # held-out tiles do not touch
        return windows.permute(1, 2, 0, 3, 4)[keep].contiguous()

    def _sides(self, picture: Image) -> tuple[int, int]:
        """Return the scaled height and width."""
        scale = self.side / min(picture.size)
        return round(picture.height * scale), round(picture.width * scale)

    def _scaled(self, picture: Image) -> Image:
        from PIL.Image import Resampling

        return picture.convert("RGB").resize(self._sides(picture)[::-1], Resampling.LANCZOS)


def paths() -> list[Path]:
    """Return the files of all photographs."""
    return [_path(package, file) for package, file in FILES.values()]


def _path(package: str, file: str) -> Path:
    path = package_file(package, file)
    if path is None:
        hint = "which is not installed: pip install 'gen-diffusion[vision]'"
        raise UserError(f'the data "photographs" lie in {package}, {hint}')
    return path
