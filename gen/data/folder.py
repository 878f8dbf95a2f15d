"""A folder of pictures: one subfolder per class, or flat and without labels."""

from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.values import parse_text
from gen.data.lib.checksums import SUMS, check_sums
from gen.data.lib.tensors import CHANGED, check_split, content_hash, hold_out

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Folder", "Pictures", "fit", "read_picture"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # no other decoder runs, whatever a file's name: EPS would start Ghostscript
PNG_DEPTH = 24  # offset of the byte that holds a PNG's bits per channel
TURNS = {  # EXIF orientation -> what sets the picture upright, of PIL.Image.Transpose
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class Folder:
    """Pictures (png, jpg, jpeg, webp, bmp) in class subfolders, in order of name, or all in one folder without labels.

    A picture is read as viewers show it: turned by its EXIF orientation, transparency over a background; colour
    profiles are not applied. It is decoded when its item is read.
    Every file is read once at open() for its header and the fingerprint, the sha256 over each file's path in the
    folder, length and sha256, with split and options (some seconds per GB).
    Class folders are searched to any depth, links included. Files of other kinds and hidden ones are left out, and a
    warning says how many.
    Raises UserError, in one line, for missing, empty and mixed folders and, by path, for pictures that are unreadable,
    so large that they may be decompression bombs, of more than 8 bits a channel, or animated, for
    broken links, and for names that are not UTF-8 or hold control characters.

    Attributes:
        path: the folder.
        size: height and width in pixels; one number for squares, else [32, 48] or "32x48" for 32 rows of 48. Pictures
            are scaled until they cover it and cropped in the middle (`fit`).
        channels: 3 for colour, 1 for grey.
        background: grey level under transparent pixels, 0 (black) to 255 (white, as in browsers).
        flip: True adds the mirrored pictures to "train", which makes it twice as long.
        holdout: the share held out for "test", in [0, 1); without effect if there is a test_path.
        skip_corrupt: True decodes every picture at open() and leaves out, with a warning that names them, those that
            cannot be decoded; False stops at the first such picture with an error that names it.
        test_path: a second folder with the same classes, which is then all of "test" while `path` is all of "train".
    """

    path: str
    size: int | tuple[int, int] | str
    channels: int = 3
    background: int = 255
    flip: bool = False
    holdout: float = 0.1
    skip_corrupt: bool = False
    test_path: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size_of(self.size))
        check_fields(self, size="[1, 1000000]", background="[0, 255]", holdout="[0, 1)")
        if self.channels not in (1, 3):
            raise UserError(f"Folder: channels = {self.channels}; allowed: 1 (grey), 3 (colour)")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self._pixels)

    @property
    def _pixels(self) -> tuple[int, int]:
        """Height and width."""
        return self.size if isinstance(self.size, tuple) else (int(self.size), int(self.size))

    @property
    def classes(self) -> int:
        return len(self._train.names)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The class folders' names, by label."""
        return tuple(self._train.names)

    def open(self, split: str) -> Pictures:
        """Open "train" or "test"."""
        listing = self._train
        if self.test_path is not None:
            check_split(split)
            listing = self._train if split == "train" else self._test
            if self._test.names != self._train.names:
                raise UserError(f"{self.test_path} has other classes than {self.path}: {self._difference()}")
            rows = list(range(len(listing.files)))
        else:
            labels = listing.labels if listing.names else None
            rows = hold_out(self.path, split, len(listing.files), self.holdout, labels)
        options = f"{split} {self.size} {self.channels} {self.background} {self.flip}"
        return Pictures(
            [listing.root / listing.files[i] for i in rows],
            torch.tensor([listing.labels[i] for i in rows]) if listing.names else None,
            self._pixels,
            self.channels,
            self.background,
            self.flip and split == "train",
            content_hash("folder", options, *(f"{listing.labels[i]} {listing.hashes[i]}" for i in rows)),
            listing.skipped,
            [listing.hashes[i] for i in rows],
        )

    @cached_property
    def _train(self) -> Listing:
        return _scan(Path(self.path), self._pixels, self.skip_corrupt)

    @cached_property
    def _test(self) -> Listing:
        return _scan(Path(self.test_path or self.path), self._pixels, self.skip_corrupt)

    def _difference(self) -> str:
        missing, extra = (
            set(a.names) - set(b.names) for a, b in ((self._train, self._test), (self._test, self._train))
        )
        return f"without {', '.join(sorted(missing)) or 'none'}, with {', '.join(sorted(extra)) or 'none'} more"


@dataclass(frozen=True)
class Listing:
    """The usable pictures of a folder: the classes' names (none if flat), and each picture's file, label and hash."""

    root: Path
    names: list[str]
    files: list[str]
    labels: list[int]
    hashes: list[str]
    skipped: list[str]


@dataclass(eq=False)
class Pictures:
    """Items {"x": float32 [C, *size] in [-1, 1], "y": int64 0-d}; with flip, all pictures again, mirrored.

    Attributes:
        paths: the files, without mirrored repeats.
        y: int64 [N] labels; None without classes.
        size: height and width of an item.
        channels: 3 for colour, 1 for grey.
        background: grey level under transparent pixels.
        flip: whether the mirrored pictures follow the others.
        fingerprint: sha256 (hex) of files and options.
        skipped: files, by path in the folder, that were left out because they cannot be decoded.
        hashes: path in the folder, length and sha256 of each file when it was opened; a file that is read and has
            another is a UserError.
    """

    paths: list[Path]
    y: Tensor | None
    size: tuple[int, int]
    channels: int
    background: int
    flip: bool
    fingerprint: str
    skipped: list[str]
    hashes: list[str]

    def __len__(self) -> int:
        return len(self.paths) * (2 if self.flip else 1)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        i = range(len(self))[i]  # as a list has it: negative from the end, IndexError past it
        row = i % len(self.paths)
        path = self.paths[row]
        data = _read(path)
        if not self.hashes[row].endswith(_content(data)):
            raise UserError(f"{path} {CHANGED}")
        x = _sample_of(_decode(path, data, self.channels, self.background), self.size)
        x = x if i < len(self.paths) else x.flip(2)
        return {"x": x} if self.y is None else {"x": x, "y": self.y[row]}


def read_picture(path: Path, shape: Sequence[int], background: int = 255) -> Tensor:
    """Read one picture as `Folder` does: float32 [C, H, W] in [-1, 1].

    Args:
        path: the file.
        shape: (C, H, W), C 1 for grey and 3 for colour.
        background: grey level under transparent pixels.

    Raises:
        UserError: in one line, for what a Folder refuses.
    """
    data, size = _read(path), (shape[1], shape[2])
    _header(path, data, size)
    return _sample_of(_decode(path, data, shape[0], background), size)


def _sample_of(image: Image, size: tuple[int, int]) -> Tensor:
    """Return a picture as a sample of a size, in [-1, 1]."""
    x = torch.from_numpy(np.array(fit(image, size))).reshape(*size, -1).permute(2, 0, 1)
    return (x.float().contiguous() - 127.5) / 127.5


def fit(image: Image, size: tuple[int, int]) -> Image:
    """Scale a picture, sides in proportion, until it just covers a size, and crop the middle.

    Halves by a box filter while possible and scales the rest bicubically: the preprocessing of the ADM reference
    statistics (Dhariwal & Nichol 2021), up to its rounding of the crop.

    Args:
        image: the picture.
        size: height and width of the result, in pixels.
    """
    from PIL.Image import Resampling

    height, width = size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _size_of(size: object) -> object:
    """Return a size as a number for squares, else as height and width; what is none as it is."""
    if isinstance(size, str):
        numbers = re.fullmatch(r"\s*(\d{1,6})(?:\s*x\s*(\d{1,6}))?\s*", size)
        size = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else parse_text(size)
        if isinstance(size, str):
            raise UserError(f"Folder: size = {shown(size)}; allowed: 32, [32, 48] or 32x48, height and width")
    if isinstance(size, (list, tuple)) and len(size) == 2 and type(size[0]) is int and size[0] == size[1]:
        return size[0]
    return size


def _scan(root: Path, size: tuple[int, int], skip_corrupt: bool) -> Listing:
    """Find, check and hash the pictures of a folder."""
    names, found = _find(root)
    listing, sums = Listing(root, names, [], [], [], []), dict[Path, str | None]()
    for path, label in found:
        file = path.relative_to(root).as_posix()
        data = _read(path)
        sums[path] = _content(data).split()[-1]
        try:
            _header(path, data, size)
            if skip_corrupt:
                _decode(path, data)
        except Unreadable:
            if not skip_corrupt:
                raise
            listing.skipped.append(file)
            continue
        listing.files.append(file)
        listing.labels.append(label)
        listing.hashes.append(f"{file}{_content(data)}")
    check_sums(root, sums)
    if not listing.files:
        raise UserError(f"{root}: none of its {len(listing.skipped)} pictures can be decoded")
    if listing.skipped:
        shown = ", ".join(listing.skipped[:20]) + (", ..." if len(listing.skipped) > 20 else "")
        warnings.warn(f"{root}: left out {len(listing.skipped)} of {len(found)} pictures: {shown}", stacklevel=2)
    return listing


def _find(root: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return the names of the classes (none if flat) and every picture with its label (0 if flat), by name."""
    if not root.is_dir():
        raise UserError(f"{root} is {'a file' if root.exists() else 'not there'}; give a folder of pictures")
    paths = _walk(root)
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    pictures = [path for path in shown if path.suffix.lower() in SUFFIXES]
    for path in pictures:
        _check_file(path)
    flat = [path for path in pictures if path.parent == root]
    if flat and len(flat) < len(pictures):
        raise UserError(f"{root} holds {len(flat)} pictures beside class folders: move them into one, or out")
    if not pictures:
        raise UserError(f"{root} holds no pictures ({', '.join(SUFFIXES)})")
    names = [] if flat else [p.name for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    classes = [path.relative_to(root).parts[0] for path in pictures]
    if empty := sorted(set(names) - set(classes)):
        raise UserError(f"class folder {root / empty[0]} holds no pictures ({', '.join(SUFFIXES)}): fill or remove it")
    if left_out := sorted({*paths}.difference(pictures, [root / SUMS])):
        hidden = len(paths) - len(shown)
        counts = f"{len(left_out) - hidden} files of other kinds and {hidden} hidden ones"
        first = left_out[0].relative_to(root).as_posix()
        warnings.warn(f"{root}: left out {counts}, such as {first!a}", stacklevel=2)
    label = {name: i for i, name in enumerate(names)}
    return names, [(path, label.get(name, 0)) for path, name in zip(pictures, classes, strict=True)]


def _walk(root: Path) -> list[Path]:
    """Return every file under a folder, to any depth and through links, in order of name."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename!a} cannot be read: {error.strerror}") from error

    paths: list[Path] = []
    for folder, folders, files in os.walk(root, onerror=stop, followlinks=True):
        for link in (Path(folder, name) for name in folders):
            if link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve()):
                raise UserError(f"{str(link)!a} links to a folder that it lies in: remove the link")
        paths += [Path(folder, name) for name in files]
    return sorted(paths)


def _check_file(path: Path) -> None:
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in str(path)):
        raise UserError(f"{str(path)!a}: the name is not UTF-8 or holds control characters; rename the file or folder")
    if not path.is_file():
        raise UserError(f"{path} is {'a broken link' if path.is_symlink() else 'no regular file'}: mend or remove it")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _content(data: bytes) -> str:
    return f" {len(data)} {hashlib.sha256(data).hexdigest()}"


class Unreadable(UserError):
    """A picture that cannot be decoded."""


def _header(path: Path, data: bytes, size: tuple[int, int]) -> None:
    """Refuse, before decoding, what is no picture, may be a decompression bomb, is deeper than 8 bits, or animated."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                deep = image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[PNG_DEPTH] > 8)
                short, long = sorted(image.size)
                animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # MPO: a photo and its preview
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UserError(f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels: refused") from error
        except Exception as error:  # decoders of broken files raise anything
            raise _unreadable(path, error) from error
    side = max(size)  # whichever way it is turned
    if side * (side * long / short) > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise UserError(
            f"{path} is {long} pixels long and {short} wide: scaled to {side} it has more than "
            f"{Image.MAX_IMAGE_PIXELS} pixels: refused"
        )
    if deep:
        raise UserError(f"{path} has more than 8 bits a channel: convert it to 8 bits first")
    if animated:
        raise UserError(f"{path} is animated: save the frames that are meant as pictures")


def _decode(path: Path, data: bytes, channels: int = 3, background: int = 255) -> Image:
    """Decode a picture as viewers show it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            shown = _upright(image)
            if shown.has_transparency_data:
                below = Image.new("RGBA", shown.size, (background, background, background, 255))
                shown = Image.alpha_composite(below, shown.convert("RGBA"))
            return shown.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # decoders of broken files raise anything
        raise _unreadable(path, error) from error


def _upright(image: Image) -> Image:
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing, in viewers too
        turn = None
    return image if turn is None else image.transpose(Transpose[turn])


def _unreadable(path: Path, error: Exception) -> Unreadable:
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no picture of a known format" if unknown else " ".join(str(error).split()) or type(error).__name__
    return Unreadable(f"{path} cannot be decoded ({reason}); skip_corrupt = True leaves such pictures out")
