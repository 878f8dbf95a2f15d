"""Sets of pictures, in order and read by index, wherever they come from.

Folders and zips of pictures are in gen.eval.picture_files, arrays in files in gen.eval.arrays, samples of a pipeline in
gen.eval.drawn; `open_images` tells which a path is.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError, shown
from gen.config.images import to_uint8
from gen.config.spec import digest
from gen.config.torch_file import describe_start
from gen.data.lib.tensors import content_hash
from gen.eval.record import RUN_MARKS

__all__ = [
    "FLOATS",
    "DataImages",
    "Images",
    "Subset",
    "TensorImages",
    "chosen",
    "chosen_rows",
    "is_run",
    "label_counts",
    "no_pictures",
    "open_images",
    "several_runs",
]

FLOATS = "Round floats first: gen.config.images.to_uint8(x) of values from -1 to 1, (2 * x - 1) of those from 0 to 1"
ALLOWED = "a folder or a zip of pictures, .npz, .npy or .safetensors"
TORCH = (".pt", ".pth", ".ckpt", ".bin")  # suffixes of torch.save


class Images(ABC):
    """A set of pictures.

    Attributes:
        name: in messages and records.
        kind: as gen.eval.record.SamplesInfo has it.
        format: of the files, "png"; "" for those that were drawn.
        shape: of one, (C, H, W), or (C, T, H, W) of a film.
        fingerprint: digest of content and order; "" for what nobody could draw again.
        labels: int64 [N]; None without, or where `read` alone knows them.
        label_names: of the labels, from 0; () where they have none.
        extras: what `read` returns beside the images.
        drawn: whether they are drawn when they are read: each chunk by itself then, lest rounding depend on others,
            and none while others are computed with.
        least: pictures of a chunk, at least.
    """

    name: str
    kind: str
    format: str
    shape: tuple[int, ...]
    fingerprint: str
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    drawn: bool = False
    least: int = 16

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of pictures."""

    @abstractmethod
    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Read pictures.

        Args:
            rows: indices, ascending.

        Returns:
            "images", uint8 [B, C, H, W], and the extras, [B, ...] each.
        """


class TensorImages(Images):
    """Pictures in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None.
        name: in messages.
        fingerprint: digest of the content; None computes it.
    """

    kind, format = "tensor", "uint8 array"

    def __init__(self, images: Tensor, labels: Tensor | None = None, name: str = "", fingerprint: str | None = None):
        if images.dtype != torch.uint8 or images.ndim not in (4, 5) or not len(images):
            given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            hint = f". {FLOATS}" if images.is_floating_point() else ""
            raise UserError(f"a tensor of pictures is uint8 [N, C, H, W], this is {given}{hint}")
        self._images, self.labels, self.name = images.cpu(), labels, name or "tensor"
        self.shape = tuple(images.shape[1:])
        parts = [self._images] + ([] if labels is None else [labels])
        self.fingerprint = content_hash("pictures", *parts) if fingerprint is None else fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return pictures."""
        return {"images": self._images[torch.as_tensor(rows)]}


class DataImages(Images):
    """Items of a data set, rounded as samples are.

    Args:
        items: of gen.data, opened.
        name: of the data set.
        label_names: of its classes.
    """

    kind, format = "data", ""

    def __init__(self, items: Any, name: str, label_names: Sequence[str] = ()):
        self.label_names = tuple(label_names)
        self._items, self.name, self.fingerprint = items, name, items.fingerprint
        first = items[0]
        self.shape = tuple(first["x"].shape)
        self.extras = ("labels",) if "y" in first else ()

    def __len__(self) -> int:
        return len(self._items)

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Read items."""
        items = [self._items[i] for i in rows]
        found = {"images": torch.stack([to_uint8(item["x"]) for item in items])}
        return found | {name: torch.stack([item["y"] for item in items]) for name in self.extras}


class Subset(Images):
    """Some pictures of a set.

    Args:
        images: the set.
        rows: indices of those that are taken, ascending.
    """

    def __init__(self, images: Images, rows: Tensor):
        self._images, self._rows = images, rows
        self.name, self.kind, self.format, self.shape = images.name, images.kind, images.format, images.shape
        self.fingerprint, self.extras = digest([images.fingerprint, rows.tolist()]), images.extras
        self.label_names = images.label_names
        self.labels = None if images.labels is None else images.labels[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Read pictures."""
        return self._images.read(self._rows[torch.as_tensor(rows)].tolist())


def chosen(images: Images, n: int | None, seed: int) -> Images:
    """Return n pictures of a set, drawn without replacement and in their order; all of them for None.

    Args:
        images: the set.
        n: how many; UserError for more than there are.
        seed: of the choice, which depends on nothing else.
    """
    if n is None or n == len(images):
        return images
    if n > len(images):
        raise UserError(f"{images.name} holds {len(images)} pictures, {n} were asked for: give a smaller n, or more")
    return Subset(images, chosen_rows(len(images), n, seed))


def chosen_rows(total: int, n: int, seed: int) -> Tensor:
    """Return n of so many indices, drawn without replacement, ascending.

    Args:
        total: number of indices.
        n: how many.
        seed: of the choice.
    """
    if n == total:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:n].sort().values


def label_counts(labels: Tensor | None) -> tuple[int, ...]:
    """Return the number of pictures with each label, from 0.

    Args:
        labels: int64 [N], or None.
    """
    return () if labels is None else tuple(torch.bincount(labels).tolist())


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run or of a checkpoint, and no folder of pictures.

    Args:
        path: the folder.

    Raises:
        UserError: for a folder of runs.
    """
    if not path.is_dir():
        return False
    is_one = any((path / mark).exists() for mark in RUN_MARKS)
    if not is_one and (runs := sorted(path.glob("*/run.json"))):
        raise several_runs(path, runs[0].parent)
    return is_one


def several_runs(path: Path, run: Path) -> UserError:
    """Return the error for a folder of runs, where one run or pictures are needed.

    Args:
        path: the folder.
        run: one of them.
    """
    return UserError(
        f"{path} holds the run {run.name}: give {run}, or pictures alone. One run is evaluated at a time; gen "
        f"leaderboard {path} then compares all of them"
    )


def open_images(given: object, lossy: bool = True, quiet: bool = True) -> Images:
    """Open pictures that were given as a path or a tensor.

    Args:
        given: a folder or a zip of pictures, an .npz or .npy file, a safetensors file, or a uint8 tensor.
        lossy: False refuses JPEG and lossy WebP.
        quiet: False shows progress.

    Raises:
        UserError: for what is none of these.
    """
    from gen.eval.arrays import open_array
    from gen.eval.picture_files import PictureFiles

    if isinstance(given, Tensor):
        return TensorImages(given)
    if not isinstance(given, (str, Path)):
        raise UserError(f"{shown(given)} is no set of pictures: give a path, or a tensor uint8 [N, C, H, W]")
    path = Path(given)
    if path.is_dir():
        if is_run(path):
            checkpoints.locate(path)
            raise UserError(f"{path} is a run, pictures are needed: gen sample {path} --out FOLDER draws some")
        return PictureFiles(path, lossy, quiet)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run, or a folder or a file of pictures")
    if path.suffix in (".npz", ".npy", ".safetensors"):
        return open_array(path)
    if zipfile.is_zipfile(path) and path.suffix not in TORCH:
        return PictureFiles(path, lossy, quiet)
    raise no_pictures(path)


def no_pictures(path: Path) -> UserError:
    """Return the error for a file that is no set of pictures: it says what the file is, by its name and beginning.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        start = file.read(8)
    what = describe_start(path) or "no file of pictures"
    if path.suffix in TORCH:
        what = "a file of torch.save, which is not read: save the samples as .npz, .npy or .safetensors"
    elif start.startswith(b"PK"):
        what = "a zip that was cut short, or is damaged: fetch or write it again"
    elif start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM")):
        what = "one picture: give the folder that it is in"
    return UserError(f"{path} is {what}; allowed: {ALLOWED}")
