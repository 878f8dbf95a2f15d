"""Rows of encoded latents in files, read a batch at a time: safetensors shards here, other layouts in latent_files."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import file_sha256
from gen.config.spec import Json
from gen.config.tensor_files import DTYPES
from gen.data.lib.checksums import check_sums
from gen.data.lib.tensors import CHANGED

__all__ = ["EXTRAS", "Kind", "LatentRows", "ShardRows", "open_shards"]

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
EXTRAS: dict[str, tuple[str, ...]] = {"features": (), "text": ("text_mask",), "pooled": ()}  # with masks
Kind = Literal["latents", "logvar", "std"]


class LatentRows(Protocol):
    """Latents in the order of their rows.

    Attributes:
        shape: of one latent, (C, H, W).
        kind: what is kept of each: "latents" themselves, or "mean" and the "logvar" or "std" of a normal distribution.
        unit: what is kept is the autoencoder's latent times this.
        labels: int64 [N]; None without.
        label_names: of the labels, from 0; () where they have none.
        image_range: lowest and highest value of the images that were encoded; None where the files do not tell.
    """

    shape: tuple[int, int, int]
    kind: Kind
    unit: float
    label_names: tuple[str, ...]
    image_range: tuple[float, float] | None

    @property
    def labels(self) -> Tensor | None:
        """int64 [N]; None without."""
        ...

    @property
    def hashes(self) -> tuple[str, ...]:
        """Sha256 (hex) of the files, in order; all are read."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, names: Sequence[str], rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of some columns, [len(rows), ...] each, float32; masks are bool.

        Args:
            names: "latents", "mean", "logvar", "std" or "features", or one of these with "_flip"; "text", "text_mask",
                "pooled".
            rows: their indices.
        """
        ...

    def where(self, row: int) -> str:
        """Return the file of a row, in words.

        Args:
            row: its index.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """The header of a file: kind and shape [N, C, H, W] of its latents, whether there are labels, and what is read.

    Attributes:
        columns: dtype and shape of a row of each tensor that is read, by its name.
        stamp: size, time of change and inode of the file, by which a change is noticed.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    labelled: bool
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    stamp: tuple[int, ...] = ()

    def check_unchanged(self) -> None:
        """Raise UserError if the file is no longer the one that was opened; reading a truncated one kills a process."""
        if _stamp(self.path) != self.stamp:
            raise UserError(f"{self.path} {CHANGED}")

    def describe(self) -> str:
        """Return the rows' tensors, in words."""
        columns = ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in self.columns.items())
        return f"{list(self.shape)} {'with' if self.labelled else 'without'} labels ({columns})"


@dataclass(eq=False)
class ShardRows:
    """Rows of safetensors shards, one after another; see `LatentRows`.

    Attributes:
        path: file or folder.
        shards: in order.
        manifest: what gen wrote beside them; {} for others' shards.
    """

    path: Path
    shards: tuple[Shard, ...]
    manifest: Json = field(default_factory=dict)
    _mapped: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, repr=False)
    unit = 1.0

    def __post_init__(self) -> None:
        self._ends = list(accumulate(shard.shape[0] for shard in self.shards))
        _, c, h, w = self.shards[0].shape
        self.shape, self.kind = (c, h, w), self.shards[0].kind
        self.label_names: tuple[str, ...] = tuple(self.manifest.get("labels", ()))
        found = self.manifest.get("autoencoder", {}).get("image_range")
        self.image_range = None if found is None else (float(found[0]), float(found[1]))

    def __len__(self) -> int:
        return self._ends[-1]

    @cached_property
    def labels(self) -> Tensor | None:
        if not self.shards[0].labelled:
            return None
        return torch.cat([_open(shard.path).get_tensor("labels").long() for shard in self.shards])

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        hashes = []
        for shard in self.shards:
            hashes.append(file_sha256(Path(shard.path)))
            shard.check_unchanged()
            if (first := hashes.index(hashes[-1])) < len(hashes) - 1:
                raise UserError(f"{shard.path} is a copy of {self.shards[first].path}: remove it, or mend it")
        files = (Path(shard.path) for shard in self.shards)
        check_sums(self.path, by_file := dict(zip(files, hashes, strict=True)))
        if self.manifest:
            _compare(self.path, self.manifest, by_file)
        return tuple(hashes)

    def read(self, names: Sequence[str], rows: Sequence[int]) -> dict[str, Tensor]:
        at = [self._at(row) for row in rows]
        touched = sorted({k for k, _ in at})
        for k in touched:
            self.shards[k].check_unchanged()
        return {name: self._column(name, touched, at) for name in names}

    def _column(self, name: str, touched: Iterable[int], at: Sequence[tuple[int, int]]) -> Tensor:
        """Return a column of rows, each of which is (shard, row in it)."""
        bytes_of = {k: self._bytes(k, name) for k in touched}
        dtype, shape = self.shards[0].columns[name]
        out = np.empty((len(at), math.prod(shape) * DTYPES[dtype].itemsize), np.uint8)
        for row, (k, start) in zip(out, at, strict=True):  # a torch operation for each would take five times as long
            row[:] = bytes_of[k][start]
        values = torch.from_numpy(out).view(DTYPES[dtype]).view(len(at), *shape)
        return values.float() if values.is_floating_point() else values

    def _bytes(self, k: int, name: str) -> np.ndarray:
        """Return the memory-mapped bytes of a tensor of a shard, uint8 [N, bytes of a row]."""
        if (k, name) not in self._mapped:
            tensor = _open(self.shards[k].path).get_tensor(name)
            self._mapped[k, name] = tensor.flatten(1).view(torch.uint8).numpy()
        return self._mapped[k, name]

    def where(self, row: int) -> str:
        k, start = self._at(row)
        return f"row {start} of {self.shards[k].path}"

    def _at(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and which of its rows it is."""
        k = bisect.bisect_right(self._ends, row)
        return k, row - self._ends[k] + self.shards[k].shape[0]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": {}}  # maps do not travel to worker processes


def open_shards(path: Path, flip: bool, extras: Sequence[str], manifest: Json | None) -> ShardRows:
    """Read and check the headers of safetensors shards.

    Args:
        path: a file, or a folder of them.
        flip: whether latents of mirrored images are needed.
        extras: what is needed beside latents, keys of EXTRAS.
        manifest: that gen wrote beside them, or None.

    Raises:
        UserError: in one line, for files that are missing, damaged or laid out differently.
    """
    listed = {path / entry["file"] for entry in (manifest or {}).get("files", ())}
    for file in sorted(listed):
        if not file.is_file():
            raise UserError(f"{file} is not there, and {path / 'manifest.json'} lists it: run gen encode again")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .safetensors file")
    shards = tuple(_inspect(file, flip, extras) for file in files)
    first = shards[0]
    for shard in shards[1:]:
        if (shard.columns, shard.labelled) != (first.columns, first.labelled):
            raise UserError(
                f"{shard.path} {shard.describe()} does not go with {first.path} {first.describe()}: "
                "all shards need the same shape and dtype, and labels in all or in none"
            )
    if not any(shard.shape[0] for shard in shards):
        raise UserError(f"{path} holds no latents: N is 0")
    return ShardRows(path, shards, manifest or {})


def _compare(path: Path, manifest: Json, hashes: Mapping[Path, str]) -> None:
    """Raise UserError unless shards are those that a manifest lists."""
    listed = {path / entry["file"]: entry["sha256"] for entry in manifest["files"]}
    for file, sha256 in hashes.items():
        if file not in listed:
            raise UserError(f"{file} is not among the files of {path / 'manifest.json'}: remove it")
        if listed[file] != sha256:
            raise UserError(f"{file} is damaged or was changed: run its gen encode again")


def _stamp(path: str) -> tuple[int, ...]:
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path costs as much as the call
    except OSError:
        return ()
    return (about.st_size, about.st_mtime_ns, about.st_ino)


def _open(path: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error


def _inspect(file: Path, flip: bool, extras: Sequence[str]) -> Shard:
    """Read and check the header of one file."""
    stamp = _stamp(str(file))
    header = _open(str(file))
    found = {key: (header.get_slice(key).get_shape(), header.get_slice(key).get_dtype()) for key in header.keys()}  # noqa: SIM118
    kind: Kind = "logvar" if {"mean", "logvar"} <= found.keys() else "latents"
    main, *others = ("mean", "logvar") if kind == "logvar" else ("latents",)
    if main not in found:
        raise UserError(f"{file} has no latents; it has {', '.join(found) or 'nothing'}")
    shape, dtype = found[main]
    if len(shape) != 4 or dtype not in FLOATS:
        raise UserError(f"{file}: {main} is {dtype} {shape}; allowed: floating point [N, C, H, W]")
    if "labels" in found and (found["labels"][0] != shape[:1] or found["labels"][1] not in ("I64", "I32")):
        raise UserError(f"{file}: labels is {found['labels'][1]} {found['labels'][0]}; allowed: I64 or I32 {shape[:1]}")
    names = [main, *others, *(f"{name}_flip" for name in (main, *others) if flip)]
    for name in names[1:]:
        if name not in found:
            raise UserError(f"{file} has no {name}, which flip = True needs; it has {', '.join(found)}")
        if found[name][0] != shape or found[name][1] not in FLOATS:
            raise UserError(f"{file}: {name} is {found[name][0]}, but {main} is {shape}")
    for extra in extras:
        names += _inspect_extra(file, extra, flip, found, shape[0])
    columns = {name: (found[name][1], tuple(found[name][0][1:])) for name in names}
    return Shard(str(file), kind, tuple(shape), "labels" in found, columns, stamp)


def _inspect_extra(file: Path, extra: str, flip: bool, found: Mapping[str, tuple[list[int], str]], n: int) -> list[str]:
    """Return the names of the tensors that an extra is read from, checked."""
    required = [extra, *EXTRAS[extra]] + ([f"{extra}_flip"] if flip and extra == "features" else [])
    for name in required:
        if name not in found:
            raise UserError(f"{file} has no {name}, which {extra} = True needs; it has {', '.join(found)}")
    for name in required:
        (size, dtype), mask = found[name], name in EXTRAS[extra]
        flat = mask or extra == "pooled"
        if len(size) != 3 - flat or size[0] != n or (dtype != "BOOL" if mask else dtype not in FLOATS):
            allowed = (
                f"BOOL [{n}, T]" if mask else f"floating point [{n}, D]" if flat else f"floating point [{n}, T, D]"
            )
            raise UserError(f"{file}: {name} is {dtype} {size}; allowed: {allowed}")
        if size[:2] != found[extra][0][:2] or (not mask and size != found[extra][0]):
            raise UserError(f"{file}: {name} is {size}, but {extra} is {found[extra][0]}")
    return required
