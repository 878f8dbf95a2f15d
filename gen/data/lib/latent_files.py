"""Latents of other repositories, a file for each: fast-DiT's, REPA's and EDM2's, and MAR's. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import parse_json
from gen.data.lib.latent_rows import Kind
from gen.data.lib.tensors import CHANGED

__all__ = ["FAST_DIT_UNIT", "FileRows", "open_files"]

FAST_DIT_UNIT = 0.18215  # its files hold latents times this
LIST = "dataset.json"
LARGEST = 2**28  # bytes of one file: a latent has some 10^4


@dataclass(eq=False)
class FileRows:
    """Rows of which each is a file of a folder or of a zip; see `LatentRows`.

    Attributes:
        root: folder or zip.
        files: names in it, in order of row.
        parse: parse(bytes) returns the arrays of a file by name; ValueError for what is none.
        kind, unit, label_names, image_range: see `LatentRows`.
        given_labels: the labels; None for none, or for files of labels.
        label_files: names of files that hold a label each, () for none.
    """

    root: Path
    files: Sequence[str]
    parse: Callable[[bytes], dict[str, np.ndarray[Any, Any]]]
    kind: Kind
    unit: float = 1.0
    label_names: tuple[str, ...] = ()
    image_range: tuple[float, float] | None = None
    given_labels: Sequence[int] | None = None
    label_files: Sequence[str] = ()
    _zips: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError(f"{self.root} holds no latents: N is 0")
        first = next(iter(self._tensors(0).values()))
        self.shape: tuple[int, int, int] = (first.shape[0], first.shape[1], first.shape[2])

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def labels(self) -> Tensor | None:
        if self.label_files:
            return torch.tensor([self._label(name) for name in self.label_files])
        return None if self.given_labels is None else torch.tensor(self.given_labels, dtype=torch.int64)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        with ThreadPoolExecutor(1 if self.root.is_file() else 8) as pool:
            found = tuple(pool.map(lambda name: hashlib.sha256(self._bytes(name)).hexdigest(), self.files))
        labels = self.labels
        return (*found, "" if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest())

    def read(self, names: Sequence[str], rows: Sequence[int]) -> dict[str, Tensor]:
        found = [self._tensors(row) for row in rows]
        return {name: torch.stack([tensors[name] for tensors in found]) for name in names}

    def where(self, row: int) -> str:
        return str(self.root / self.files[row])

    def _tensors(self, row: int) -> dict[str, Tensor]:
        """Return the tensors of a row, float32 [C, H, W] each; UserError for what does not fit the layout."""
        where, data = self.where(row), self._bytes(self.files[row])
        if "hashes" in self.__dict__ and hashlib.sha256(data).hexdigest() != self.hashes[row]:
            raise UserError(f"{where} {CHANGED}")
        try:
            found = {name: torch.from_numpy(array.astype(np.float32)) for name, array in self.parse(data).items()}
        except (ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{where}: {' '.join(str(error).split())}") from None
        shape = getattr(self, "shape", next(iter(found.values())).shape)
        for name, tensor in found.items():
            if tuple(tensor.shape) != tuple(shape):
                raise UserError(f"{where}: {name} is {list(tensor.shape)}, that of the first {list(shape)}")
            if name.startswith("std") and bool((tensor < 0).any()):
                raise UserError(
                    f"{where}: the second half of the channels has values below 0, as log variances have: it is said "
                    "to be standard deviations"
                )
            if name.startswith("logvar") and not bool((tensor < 0).any()):
                raise UserError(
                    f"{where}: the second half of the channels has no value below 0, as standard deviations have none: "
                    "it is said to be log variances"
                )
        return found

    def _label(self, name: str) -> int:
        label = _array(self._bytes(name))
        if label.size != 1 or label.dtype.kind not in "iu":
            raise UserError(f"{self.root / name} is {label.dtype} {list(label.shape)}; allowed: one whole number")
        return int(label.reshape(-1)[0])

    def _bytes(self, name: str) -> bytes:
        try:
            if not self.root.is_file():
                return (self.root / name).read_bytes()
            if os.getpid() not in self._zips:  # a file that a parent opened has one position for both
                self._zips[os.getpid()] = zipfile.ZipFile(self.root)
            entry = self._zips[os.getpid()].getinfo(name)
            if entry.file_size > LARGEST:
                raise UserError(f"{self.root / name} has {entry.file_size:,} bytes; at most {LARGEST:,} are read")
            return self._zips[os.getpid()].read(name)
        except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f"{self.root / name} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zips": {}}


def open_files(path: Path, flip: bool, extras: Sequence[str]) -> FileRows | None:
    """Open latents of which each is a file; None for a path that holds none.

    Args:
        path: folder or zip.
        flip: whether latents of mirrored images are needed.
        extras: what is needed beside latents, such as "features"; there is none.

    Raises:
        UserError: in one line, for files that are damaged or laid out differently, and if what is needed is not there.
    """
    rows = _mean_std(path) if path.suffix == ".zip" else None
    if path.is_dir() and not any(path.glob("*.safetensors")):
        rows = _fast_dit(path) or _mean_std(path) or _mar(path)
    if rows is None:
        return None
    if flip and "mean_flip" not in rows._tensors(0):
        raise UserError(f"{path} has no latents of mirrored images, which flip = True needs")
    for extra in extras:
        raise UserError(f"{path} has no {extra}, which {extra} = True needs")
    return rows


def _fast_dit(path: Path) -> FileRows | None:
    folders = [(a, b) for a in path.glob("*_features") if (b := a.with_name(f"{a.name[:-9]}_labels")).is_dir()]
    if not folders:
        return None
    latents, labels = folders[0]
    numbers = sorted(int(file.stem) for file in latents.glob("*.npy") if file.stem.isdecimal())
    if numbers != list(range(len(numbers))):
        raise UserError(f"{latents}: the files are not numbered from 0 to {len(numbers) - 1}: some are missing")

    def parse(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
        return {"latents": _latent(_array(data))}

    files = [f"{latents.name}/{i}.npy" for i in numbers]
    named = [f"{labels.name}/{i}.npy" for i in numbers]
    return FileRows(path, files, parse, "latents", FAST_DIT_UNIT, image_range=(-1.0, 1.0), label_files=named)


def _mean_std(path: Path) -> FileRows | None:
    """REPA's and EDM2's: dataset.json may list labels; without it files count in order of name."""
    root = path / "vae-sd" if (path / "vae-sd").is_dir() else path
    if root.is_file():
        try:
            with zipfile.ZipFile(root) as archive:
                names = archive.namelist()
                listed = archive.read(LIST) if LIST in names else b"{}"
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f"{root} cannot be read as zip: {error}") from None
    else:
        names = [file.relative_to(root).as_posix() for file in root.rglob("img-mean-std-*.npy")]
        listed = (root / LIST).read_bytes() if (root / LIST).is_file() else b"{}"
    files = sorted(name for name in names if re.search(r"img-mean-std-\d+\.npy$", name))
    if not files:
        return None
    found = parse_json(listed.decode("utf-8", "replace"), root / LIST)
    pairs = found.get("labels") if isinstance(found, dict) else None
    labels: list[int] | None = None
    if pairs is not None:
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise UserError(f'{root / LIST}: "labels" is no list of [file, label], a whole number')
        known = {str(name).replace("\\", "/"): label for name, label in pairs}
        if sorted(known) != files:
            odd = min({*known} ^ {*files})
            raise UserError(f"{root}: {odd} is {'not among the files' if odd in known else f'not listed in {LIST}'}")
        labels = [known[name] for name in files]

    def parse(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
        mean, std = _halves(_array(data))
        return {"mean": mean, "std": std}

    return FileRows(root, files, parse, "std", given_labels=labels)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int


def _mar(path: Path) -> FileRows | None:
    path = path / "moments" if (path / "moments").is_dir() else path
    names = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir() and any(folder.glob("*.npz"))))
    files = [f"{name}/{file.name}" for name in names for file in sorted((path / name).glob("*.npz"))]
    if not files:
        return None
    labels = [names.index(file.partition("/")[0]) for file in files]

    def parse(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
        arrays = dict[str, np.ndarray[Any, Any]]()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for key, suffix in (("moments", ""), ("moments_flip", "_flip")):
                entry = archive.getinfo(f"{key}.npy")
                if entry.file_size > LARGEST:
                    raise ValueError(f"{key} has {entry.file_size:,} bytes; at most {LARGEST:,} are read")
                arrays["mean" + suffix], arrays["logvar" + suffix] = _halves(_array(archive.read(entry)))
        return arrays

    return FileRows(path, files, parse, "logvar", 1.0, names, (-1.0, 1.0), labels)


def _array(data: bytes) -> np.ndarray[Any, Any]:
    """Return the array of a .npy file, whose header is believed as far as the bytes go."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    left = len(data) - stream.tell()
    if dtype.kind not in "fiu" or fortran or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"the header says {dtype} {list(shape)}, and {left} bytes follow")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)


def _latent(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return [C, H, W] of that or [1, C, H, W]."""
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3 or array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} {list(array.shape)}; allowed: floating point [C, H, W]")
    return array


def _halves(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the two halves of the channels."""
    array = _latent(array)
    if len(array) % 2:
        raise ValueError(f"{len(array)} channels are no mean and deviation, half of them each")
    first, second = np.split(array, 2)
    return first, second
