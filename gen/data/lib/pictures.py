"""Picture files as data, whatever archive they lie in: the fields, the splits and the items that all sources share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import name_of
from gen.config.values import parse_text
from gen.data.lib.archives import Archive
from gen.data.lib.buckets import bucket_sizes, nearest_bucket
from gen.data.lib.cache_file import CacheFile
from gen.data.lib.crops import center_crop, fit, random_crop
from gen.data.lib.decoding import check_scaled, decode, read_header
from gen.data.lib.picture_index import Facts, inspect
from gen.data.lib.tensors import CHANGED, check_labels, check_split, content_hash, hold_out
from gen.diffusion.noise import derive

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Contents", "PictureSet", "PictureSource", "open_picture", "read_picture", "read_size", "sample_of"]


@dataclass(frozen=True)
class Contents:
    """The pictures that a source holds, before any was read.

    Attributes:
        archive: their names and bytes.
        labels: the class of each; None without classes.
        names: of the classes, in order of label; () if they have none.
        captions: the text of each; None without captions.
    """

    archive: Archive
    labels: Sequence[int] | None = None
    names: tuple[str, ...] = ()
    captions: Sequence[str] | None = None


@dataclass(frozen=True)
class PictureSource:
    """Picture files (png, jpg, jpeg, webp, bmp): the fields and the behaviour of every source that has some.

    A picture is read as viewers show it: turned by its EXIF orientation, transparency over a background; colour
    profiles are not applied. It is decoded when its item is read.
    Every file is read once, the first time that it is opened, for its header and its sha256 (some seconds per GB); from
    1000 pictures on an index outside the data remembers that (gen.data.lib.picture_index). The fingerprint is the
    sha256 over each picture's label, name, length and sha256, with split and options.
    Raises UserError, in one line, for what is missing or empty and, by name, for pictures that are unreadable, so large
    that they may be decompression bombs, of more than 8 bits a channel, or animated.

    Attributes:
        path: where the pictures are.
        size: height and width in pixels; one number for squares, else [32, 48] or "32x48" for 32 rows of 48; None for
            the size that all pictures have.
        channels: 3 for colour, 1 for grey; None for 1 if every picture is grey, else 3.
        background: grey level under transparent pixels, 0 (black) to 255 (white, as in browsers).
        crop: how a picture becomes that size: "adm" scales it until it covers the size and crops the middle, as the
            reference statistics of ADM do; "edm2" crops the middle and scales that, EDM2's center-crop; "random" crops
            "train" at random from one to 1.25 times as large, and the rest as "adm" (gen.data.lib.crops).
        buckets: None brings all pictures to one size; a number, such as 64, to sizes of about the area of `size`, each
            picture to that of the nearest aspect ratio: sides are multiples of so many pixels, from half to twice the
            side of a square (gen.data.lib.buckets). The batch of a step is of one of them.
        flip: of "train": "double" adds the mirrored pictures, which makes it twice as long; "random" mirrors each by a
            coin in each epoch.
        holdout: the share held out for "test", in [0, 1); without effect if there is a test_path.
        skip_corrupt: True decodes every picture the first time that it is opened, and leaves out, with a warning that
            names them, those that cannot be decoded; False stops at the first such picture with an error that names it.
        test_path: more pictures of the same classes, which are then all of "test" while `path` is all of "train".
    """

    path: str
    size: int | tuple[int, int] | str | None = None
    channels: int | None = None
    background: int = 255
    crop: Literal["adm", "edm2", "random"] = "adm"
    buckets: int | None = None
    flip: Literal["no", "double", "random"] = "no"
    holdout: float = 0.1
    skip_corrupt: bool = False
    test_path: str | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "size", read_size(self.size, f"{name}: size"))
        check_fields(self, size="[1, 1000000]", background="[0, 255]", buckets="[1, 1000000]", holdout="[0, 1)")
        if self.channels not in (None, 1, 3):
            raise UserError(f"{name}: channels = {self.channels}; allowed: 1 (grey), 3 (colour)")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W); of data in buckets that of `size`, whose area they have."""
        grey = self.channels is None and all(bool(listing.facts.grey.all()) for listing in self._listings)
        return (self.channels or (1 if grey else 3), *self._pixels)

    @property
    def classes(self) -> int:
        """The number of labels; 0 without."""
        contents = self._train.contents
        return 0 if contents.labels is None else len(contents.names) or max(contents.labels) + 1

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return self._train.contents.names

    @property
    def sources(self) -> tuple[str, ...]:
        """The paths of "train" and of "test", or the one of both."""
        return (self.path,) if self.test_path is None else (self.path, self.test_path)

    def contents(self, path: Path) -> Contents:
        """List the pictures at a path, without reading any.

        Args:
            path: one of `sources`.
        """
        raise NotImplementedError(f"{type(self).__name__} lists no pictures")

    def open(self, split: str) -> PictureSet:
        """Open "train" or "test".

        Args:
            split: the name.
        """
        check_split(split)
        listing = self._listings[-1 if split == "test" else 0]
        if len(self._listings) == 1:
            chosen = hold_out(self.path, split, len(listing.rows), self.holdout, listing.labels)
        else:
            self._check_classes()
            chosen = list(range(len(listing.rows)))
        shape = self.shape
        options = f"{split} {shape} {self.background} {self.crop} {self.flip}"
        rows, sizes = np.array([listing.rows[i] for i in chosen]), self.bucket_sizes
        if self.buckets is not None:
            options += f" buckets {self.buckets}"
        return PictureSet(
            listing.contents,
            listing.facts,
            listing.index,
            rows,
            None if listing.labels is None else torch.tensor([listing.labels[i] for i in chosen]),
            shape,
            self.background,
            "adm" if self.crop == "random" and split == "test" else self.crop,
            self.flip if split == "train" else "no",
            content_hash("pictures", options, *(listing.line(i) for i in chosen)),
            listing.skipped,
            sizes,
            nearest_bucket(listing.facts.widths[rows], listing.facts.heights[rows], sizes),
        )

    @cached_property
    def bucket_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket; of the only size without buckets."""
        if self.buckets is None:
            return (self._pixels,)
        if self.size is None:
            raise UserError(f"{type(self).__name__}: buckets = {self.buckets} need a size, whose area they have")
        if not (sizes := bucket_sizes(self._pixels, self.buckets)):
            height, width = self._pixels
            raise UserError(
                f"{type(self).__name__}: buckets = {self.buckets} pixels, longer than the side of a square of the area "
                f"of size = {height}x{width}"
            )
        return sizes

    @cached_property
    def _train(self) -> Listing:
        return self._listing(self.sources[0])

    @cached_property
    def _listings(self) -> tuple[Listing, ...]:
        """The pictures of "train" and of "test", which may be the same."""
        return (self._train, *(self._listing(path) for path in self.sources[1:]))

    def _listing(self, path: str) -> Listing:
        """List, check and hash the pictures at a path."""
        contents = self.contents(Path(path))
        index = CacheFile(name_of(type(self)), path)
        facts = inspect(contents.archive, index, self.skip_corrupt)
        rows = np.flatnonzero(facts.widths)
        skipped = [contents.archive.names[int(row)] for row in np.flatnonzero(facts.widths == 0)]
        if not len(rows):
            raise UserError(f"{path}: none of its {len(skipped)} pictures can be decoded")
        if skipped:
            some = ", ".join(skipped[:20]) + (", ..." if len(skipped) > 20 else "")
            warnings.warn(f"{path}: left out {len(skipped)} of {len(facts.widths)} pictures: {some}", stacklevel=2)
        if self.size is not None:
            longer = np.maximum(facts.widths, facts.heights)[rows] / np.minimum(facts.widths, facts.heights)[rows]
            row = int(rows[longer.argmax()])
            where = contents.archive.where(row)
            check_scaled(where, int(facts.widths[row]), int(facts.heights[row]), max(map(max, self.bucket_sizes)))
        return Listing(contents, facts, index, rows, skipped)

    @cached_property
    def _pixels(self) -> tuple[int, int]:
        """Height and width."""
        if self.size is not None:
            return self.size if isinstance(self.size, tuple) else (int(self.size), int(self.size))
        listing, rows = self._train, self._train.rows
        widths, heights = listing.facts.widths[rows], listing.facts.heights[rows]
        differs = np.flatnonzero((widths != widths[0]) | (heights != heights[0]))
        if len(differs):
            a, b = (f"{listing.contents.archive.where(rows[i])} is {widths[i]} x {heights[i]}" for i in (0, differs[0]))
            raise UserError(f"{a} and {b}: pictures of several sizes need a size (--size 32, or size = [32, 48])")
        return int(heights[0]), int(widths[0])

    def _check_classes(self) -> None:
        train, test = (listing.contents for listing in self._listings)
        if test.names != train.names or (test.labels is None) != (train.labels is None):
            lacks, more = sorted(set(train.names) - {*test.names}), sorted(set(test.names) - {*train.names})
            raise UserError(
                f"{self.sources[-1]} has other classes than {self.sources[0]}: without {', '.join(lacks) or 'none'}, "
                f"with {', '.join(more) or 'none'} more"
            )
        if test.labels is not None:
            check_labels(self.sources[-1], torch.tensor(test.labels), self.classes)


@dataclass(frozen=True)
class Listing:
    """The usable pictures of an archive: `rows` of it, and the names of those that were skipped."""

    contents: Contents
    facts: Facts
    index: CacheFile
    rows: np.ndarray
    skipped: list[str]

    @cached_property
    def labels(self) -> list[int] | None:
        """The labels of the rows."""
        labels = self.contents.labels
        return None if labels is None else [int(labels[row]) for row in self.rows]

    def line(self, i: int) -> str:
        """Return label, name, length and sha256 of the i-th of the rows."""
        row, label = int(self.rows[i]), 0 if self.labels is None else self.labels[i]
        name = self.contents.archive.names[row]
        return f"{label} {name} {self.facts.lengths[row]} {self.facts.digest(row).hex()}"


@dataclass(eq=False)
class PictureSet:
    """Items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d}; with flip "double", all pictures again, mirrored.

    Attributes:
        contents, facts, index: of all pictures that the source has; a picture that is read and has another sha256 is a
            UserError.
        rows: of the archive, without mirrored repeats.
        y: int64 [N] labels; None without classes.
        shape: (C, H, W) of an item; of data in buckets that of one that has the area.
        background: grey level under transparent pixels.
        crop, flip: as of PictureSource.
        fingerprint: sha256 (hex) of files and options.
        skipped: names of files that were left out because they cannot be decoded.
        sizes: height and width of each bucket; one without buckets.
        bucket: index in `sizes` of each of `rows`.
    """

    contents: Contents
    facts: Facts
    index: CacheFile
    rows: np.ndarray
    y: Tensor | None
    shape: tuple[int, int, int]
    background: int
    crop: str
    flip: str
    fingerprint: str
    skipped: list[str]
    sizes: tuple[tuple[int, int], ...]
    bucket: np.ndarray

    def __len__(self) -> int:
        return len(self.rows) * (2 if self.flip == "double" else 1)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._item(i, None)

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i under the random crop and the coin of a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items.
        """
        return self._item(i, key)

    @property
    def buckets(self) -> np.ndarray | None:
        """The bucket of each item, [len]; None without buckets."""
        return None if len(self.sizes) == 1 else np.resize(self.bucket, len(self))

    def bucket_counts(self) -> dict[str, int]:
        """Return how many items each bucket has that has any, by "HxW"; {} without buckets."""
        if self.buckets is None:
            return {}
        counts = np.bincount(self.buckets, minlength=len(self.sizes))
        return {f"{h}x{w}": int(count) for (h, w), count in zip(self.sizes, counts, strict=True) if count}

    def where(self, i: int) -> str:
        """Return the file of item i."""
        return self.contents.archive.where(self._row(i))

    def caption(self, i: int) -> str | None:
        """Return the text of item i, None if pictures have none; a network takes no text, its embedding it does.

        Args:
            i: index in [0, len).
        """
        return None if self.contents.captions is None else self.contents.captions[self._row(i)]

    def _row(self, i: int) -> int:
        i = range(len(self))[i]  # as a list has it: negative from the end, IndexError past it
        return int(self.rows[i % len(self.rows)])

    def _item(self, i: int, key: int | None) -> dict[str, Tensor]:
        row, n = self._row(i), len(self.rows)
        shape = (self.shape[0], *self.sizes[self.bucket[i % n]])
        x = sample_of(self._decoded(row), shape, self.crop, self.flip, key, i % len(self) >= n)
        return {"x": x} if self.y is None else {"x": x, "y": self.y[i % n]}

    def _decoded(self, row: int) -> Image:
        archive = self.contents.archive
        data = archive.read(row)
        if sha256(data).digest() != self.facts.digest(row):
            self.index.remove()  # it says what is no longer true
            raise UserError(f"{archive.where(row)} {CHANGED}")
        return decode(archive.where(row), data, self.shape[0], self.background)


def open_picture(path: Path) -> Image:
    """Read one picture in colour at its own size.

    Args:
        path: the file.

    Raises:
        UserError: in one line, for what a source refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    read_header(str(path), data)
    return decode(str(path), data, 3, 255)


def read_picture(path: Path, shape: Sequence[int], background: int = 255) -> Tensor:
    """Read one picture as a PictureSource does by default: float32 [C, H, W] in [-1, 1].

    Args:
        path: the file.
        shape: (C, H, W), C 1 for grey and 3 for colour.
        background: grey level under transparent pixels.

    Raises:
        UserError: in one line, for what a source refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    header = read_header(str(path), data)
    check_scaled(str(path), header.width, header.height, max(shape[1:]))
    return _sample_of(fit(decode(str(path), data, shape[0], background), (shape[1], shape[2])), shape)


def sample_of(
    image: Image, shape: tuple[int, int, int], crop: str, flip: str, key: int | None, mirrored: bool
) -> Tensor:
    """Return a decoded picture as a sample of a shape: float32 [C, H, W] in [-1, 1].

    Args:
        image: of C bands.
        shape: (C, H, W).
        crop, flip: as of PictureSource.
        key: of the random crop and the coin; None for neither.
        mirrored: whether it is the mirrored one of flip "double".
    """
    size = (shape[1], shape[2])
    if crop == "edm2":
        image = center_crop(image, size)
    elif crop == "random" and key is not None:
        image = random_crop(image, size, key)
    else:
        image = fit(image, size)
    x = _sample_of(image, shape)
    return x.flip(2) if mirrored or (flip == "random" and key is not None and derive("flip", key) % 2) else x


def _sample_of(image: Image, shape: Sequence[int]) -> Tensor:
    """Return a picture of the right size as a sample in [-1, 1]."""
    planes = bytearray().join(band.tobytes() for band in image.split())  # in half the time of turning an array's axes
    return torch.frombuffer(planes, dtype=torch.uint8).view(*shape).sub(127.5).div_(127.5)


def read_size(size: object, where: str) -> object:
    """Return a size as a number for squares, else as height and width; what is none as it is.

    Args:
        size: a number, a pair or a text, "32" or "32x48".
        where: what it is of, for the error.

    Raises:
        UserError: for a text that is no size.
    """
    if isinstance(size, str):
        numbers = re.fullmatch(r"\s*(\d{1,6})(?:\s*x\s*(\d{1,6}))?\s*", size)
        size = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else parse_text(size)
        if isinstance(size, str):
            raise UserError(f"{where} = {shown(size)}; allowed: 32, [32, 48] or 32x48, height and width")
    if isinstance(size, (list, tuple)) and len(size) == 2 and type(size[0]) is int and size[0] == size[1]:
        return size[0]
    return size
