"""A folder or a zip of pictures as one set: in order of path, all of one size, none of them altered on the way."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.reading import parse_json
from gen.data.lib.archives import left_out
from gen.data.lib.decoding import FORMATS, SUFFIXES
from gen.data.lib.tensors import CHANGED, check_labels, content_hash
from gen.eval.image_sets import Images, several_runs
from gen.training.log import ProgressBar

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureFiles"]

MODES = {"1": 1, "L": 1, "P": 3, "RGB": 3}  # of PIL -> channels; others are refused
EDM_FOLDER = re.compile(r"\d{5}")  # of EDM's zips: no class
MAX_BYTES = 2**28  # of one picture's file
LABELS_FILE = "dataset.json"  # of EDM's folders and zips: {"labels": [[name, label], ...]}


@dataclass(frozen=True)
class Header:
    """What the beginning of a picture's file says."""

    size: tuple[int, int]
    channels: int
    format: str
    lossy: bool
    profile: bool
    sha256: str


class PictureFiles(Images):
    """Pictures, PNG, BMP, WebP or JPEG, of a folder to any depth or of a zip, by path.

    They are used as they are: nothing is scaled, turned, cropped or put on a background. A folder for each class, or
    EDM's dataset.json, gives labels. Every file is read once when the set is opened, for its header and its
    digest; a picture is decoded when it is read, several at a time, and must not have changed meanwhile.

    Args:
        path: the folder or zip.
        lossy: False refuses lossy files.
        quiet: False shows progress.

    Raises:
        UserError: names the file, for pictures of several sizes (two of them), for alpha, CMYK, palettes with
            transparency, more than 8 bits a channel, animations, and what cannot be decoded.
    """

    def __init__(self, path: Path, lossy: bool = True, quiet: bool = True) -> None:
        self.path, self.name = path, path.name or str(path)
        self.kind = "folder" if path.is_dir() else "zip"
        self._zip = None if path.is_dir() else _opened(path)
        self._lock = threading.Lock()
        self._files = self._find()
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="pictures")
        headers = self._headers(quiet)
        self._digests = [header.sha256 for header in headers]
        self._check(headers, lossy)
        width, height = headers[0].size
        self.channels = max(header.channels for header in headers)
        self.shape = (self.channels, height, width)
        self.format = _formats(headers)
        self.labels = self._labels()
        named = [f"{name} {header.sha256}" for name, header in zip(self._files, headers, strict=True)]
        self.fingerprint = content_hash("picture files", *named, *([] if self.labels is None else [self.labels]))

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Decode pictures, on several threads."""
        return {"images": torch.stack(list(self._pool.map(self._decode, rows)))}

    def _find(self) -> list[str]:
        if self._zip is not None:
            names = sorted(info.filename for info in self._zip.infolist() if not info.is_dir())
        else:
            found = (Path(folder, name) for folder, _, files in os.walk(self.path) for name in files)
            names = sorted(file.relative_to(self.path).as_posix() for file in found)
        names = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]
        pictures = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        others = [name for name in names if name not in {*pictures, LABELS_FILE}]
        if runs := [name for name in others if Path(name).name == "run.json"]:
            raise several_runs(self.path, self.path / Path(runs[0]).parent)
        if not pictures:
            run = "no checkpoint of a run, and " if self._zip is None else ""
            raise UserError(f"{self.path} holds {run}no pictures ({', '.join(SUFFIXES)})")
        if others:
            warnings.warn(f"{self.path}: left out {left_out(len(others), 0, others[0])}", stacklevel=4)
        return pictures

    def _bytes(self, name: str) -> bytes:
        try:
            if self._zip is None:
                return (self.path / name).read_bytes()
            if self._zip.getinfo(name).file_size > MAX_BYTES:
                raise UserError(f"{self.path}: {name} has more than {MAX_BYTES:,} bytes: refused")
            with self._lock:
                return self._zip.read(name)
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise UserError(f"{self.path}: {name} cannot be read: {error}") from error

    def _headers(self, quiet: bool) -> list[Header]:
        bar, headers = ProgressBar(f"{self.name}, opening", len(self._files), quiet=quiet), []
        for header in self._pool.map(self._header, self._files):
            headers.append(header)
            bar.advance()
        bar.close()
        return headers

    def _header(self, name: str) -> Header:
        from PIL import Image, UnidentifiedImageError

        data = self._bytes(name)
        where = f"{self.path}: {name}"
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    _check_mode(image, data, where)
                    lossy = image.format == "JPEG" or (image.format == "WEBP" and not _is_lossless(data))
                    kind, profile = str(image.format).lower(), "icc_profile" in image.info
                    sha256 = hashlib.sha256(data).hexdigest()
                    return Header(image.size, MODES[image.mode], kind, lossy, profile, sha256)
            except UserError:
                raise
            except UnidentifiedImageError as error:
                raise UserError(f"{where} is no picture, whatever its name says ({', '.join(SUFFIXES)})") from error
            except Exception as error:  # decoders of broken files raise anything
                raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}") from error

    def _check(self, headers: Sequence[Header], lossy: bool) -> None:
        for name, header in zip(self._files, headers, strict=True):
            if header.lossy and not lossy:
                raise UserError(
                    f"{self.path}: {name} is {header.format}, whose loss changes every distance: give the samples as "
                    "png or .npz, or allow it by --allow-lossy (allow_lossy=True)"
                )
            if header.size != headers[0].size:
                a, b = ("{} x {}".format(*size) for size in (headers[0].size, header.size))
                raise UserError(
                    f"{self.path}: {self._files[0]} is {a} and {name} is {b}, pictures of one size are needed: scale "
                    'them first, or give a data set that does, {"name": "folder", "path": ..., "size": ...}'
                )
        if any(header.profile for header in headers):
            warnings.warn(f"{self.path}: colour profiles in the files are not applied", stacklevel=4)

    def _labels(self) -> Tensor | None:
        """Return what EDM's list says, or class folders in order of name; None without either."""
        zipped = None if self._zip is None else self._zip.namelist()
        if LABELS_FILE in zipped if zipped is not None else (self.path / LABELS_FILE).is_file():
            listed = parse_json(self._bytes(LABELS_FILE).decode(), f"{self.path}: {LABELS_FILE}").get("labels")
            known = {} if listed is None else dict(listed)
            if not known:
                return None
            if missing := [name for name in self._files if not isinstance(known.get(name), int)]:
                raise UserError(
                    f"{self.path}: {LABELS_FILE} has no label of {missing[0]}. {nearest(missing[0], known)}"
                )
            labels = torch.tensor([known[name] for name in self._files])
            check_labels(f"{self.path}: {LABELS_FILE}", labels, None)
            return labels
        folders = [name.split("/")[0] for name in self._files if "/" in name]
        if len(folders) < len(self._files) or all(map(EDM_FOLDER.fullmatch, folders)) or len(set(folders)) < 2:
            return None
        self.label_names = tuple(sorted(set(folders)))
        number = {name: i for i, name in enumerate(self.label_names)}
        return torch.tensor([number[folder] for folder in folders])

    def _decode(self, i: int) -> Tensor:
        from PIL import Image

        name = self._files[i]
        data = self._bytes(name)
        if hashlib.sha256(data).hexdigest() != self._digests[i]:
            raise UserError(f"{self.path}: {name} {CHANGED}")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                x = np.array(image.convert("RGB" if self.channels == 3 else "L"))
        except Exception as error:  # decoders of broken files raise anything
            raise UserError(f"{self.path}: {name} cannot be decoded: {' '.join(str(error).split())}") from error
        return torch.from_numpy(x).reshape(*x.shape[:2], self.channels).permute(2, 0, 1).contiguous()


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no zip: {error}") from error


def _check_mode(image: Image, data: bytes, where: str) -> None:
    """Refuse pictures that have no one meaning as 8-bit grey or colour."""
    if image.has_transparency_data:
        raise UserError(
            f"{where} has an alpha channel, which is no colour: put the pictures on a background first. Real images "
            "are read over white as data, by --against.background 255 beside --against; a run's own need no --against"
        )
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[24] > 8):
        raise UserError(f"{where} has more than 8 bits a channel: convert it to 8 bits first")
    if image.mode not in MODES:
        raise UserError(f"{where} is {image.mode}; allowed: grey and RGB. Convert it first")
    if getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{where} is animated: save the frames that are meant as pictures")


def _is_lossless(data: bytes) -> bool:
    """Return whether a WebP file holds a lossless picture: the first of its chunks that is one."""
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            return data[at : at + 4] == b"VP8L"
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    return False


def _formats(headers: Sequence[Header]) -> str:
    """Return the formats in words, "png"; "jpeg (lossy): 3, png: 7" where there are several."""
    counts = Counter(header.format + (" (lossy)" if header.lossy else "") for header in headers)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name}: {n}" for name, n in sorted(counts.items()))
