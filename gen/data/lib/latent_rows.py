"""Rows of encoded latents in files, read one at a time: safetensors shards here, other layouts in latent_files."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import file_sha256
from gen.config.spec import Json
from gen.data.lib.checksums import check_sums
from gen.data.lib.tensors import CHANGED

__all__ = ["Kind", "LatentRows", "ShardRows", "open_shards"]

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
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

    def read(self, name: str, row: int) -> Tensor:
        """Return one row of a column, float32.

        Args:
            name: "latents", "mean", "logvar", "std" or "features", or one of these with "_flip".
            row: its index.
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
    """The header of a file: kind and shape [N, C, H, W] of its latents, whether there are labels, shape of features.

    `stamp` is size, time of change and inode of the file, by which a change is noticed.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    labelled: bool
    features: tuple[int, ...] = ()
    stamp: tuple[int, ...] = ()

    def check_unchanged(self) -> None:
        """Raise UserError if the file is no longer the one that was opened; reading a truncated one kills a process."""
        if _stamp(self.path) != self.stamp:
            raise UserError(f"{self.path} {CHANGED}")

    def describe(self, first: int = 0) -> str:
        """Return the sizes of the tensors from axis `first` on, in words."""
        features = f" and features {list(self.features[first:])}" if self.features else ""
        kind = "" if self.kind == "latents" else " of mean and logvar"
        return f"{list(self.shape[first:])}{kind} {'with' if self.labelled else 'without'} labels{features}"


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
    _files: dict[int, Any] = field(default_factory=dict, repr=False)
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

    def read(self, name: str, row: int) -> Tensor:
        k, start = self._at(row)
        self.shards[k].check_unchanged()
        if k not in self._files:
            self._files[k] = _open(self.shards[k].path)
        found: Tensor = self._files[k].get_slice(name)[start : start + 1][0]
        return found.float()

    def where(self, row: int) -> str:
        k, start = self._at(row)
        return f"row {start} of {self.shards[k].path}"

    def _at(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and which of its rows it is."""
        k = bisect.bisect_right(self._ends, row)
        return k, row - self._ends[k] + self.shards[k].shape[0]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}  # open files do not travel to worker processes


def open_shards(path: Path, flip: bool, features: bool, manifest: Json | None) -> ShardRows:
    """Read and check the headers of safetensors shards.

    Args:
        path: a file, or a folder of them.
        flip: whether latents of mirrored images are needed.
        features: whether features are needed.
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
    shards = tuple(_inspect(file, flip, features) for file in files)
    first = shards[0]
    for shard in shards[1:]:
        if shard.describe(1) != first.describe(1):
            raise UserError(
                f"{shard.path} {shard.describe()} does not go with {first.path} {first.describe()}: "
                "all shards need the same shape, and labels in all or in none"
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
        about = Path(path).stat()
    except OSError:
        return ()
    return (about.st_size, about.st_mtime_ns, about.st_ino)


def _open(path: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error


def _inspect(file: Path, flip: bool, features: bool) -> Shard:
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
    for name in (*others, *(f"{name}_flip" for name in (main, *others) if flip)):
        if name not in found:
            raise UserError(f"{file} has no {name}, which flip = True needs; it has {', '.join(found)}")
        if found[name][0] != shape or found[name][1] not in FLOATS:
            raise UserError(f"{file}: {name} is {found[name][0]}, but {main} is {shape}")
    required = ["features", *(["features_flip"] if flip else [])] if features else []
    for name in required:
        if name not in found:
            raise UserError(f"{file} has no {name}, which features = True needs; it has {', '.join(found)}")
        size, dtype = found[name]
        if len(size) != 3 or size[0] != shape[0] or dtype not in FLOATS:
            raise UserError(f"{file}: {name} is {dtype} {size}; allowed: floating point [{shape[0]}, T, D]")
    sizes = tuple(found["features"][0]) if features else ()
    if features and flip and tuple(found["features_flip"][0]) != sizes:
        raise UserError(f"{file}: features_flip is {found['features_flip'][0]}, but features is {list(sizes)}")
    return Shard(str(file), kind, tuple(shape), "labels" in found, sizes, stamp)
