"""Latents that an autoencoder encoded beforehand, in safetensors shards."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import file_sha256
from gen.data.lib.checksums import check_sums
from gen.data.lib.tensors import CHANGED, check_labels, content_hash, hold_out

__all__ = ["Latents"]

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names


@dataclass(frozen=True)
class Latents:
    """A .safetensors file or a folder of them: `latents` [N, C, H, W] and optionally `labels` [N] and `latents_flip`.

    Items are (latent - shift) * scale as float32. Labels are int64 or int32. A row is read when its item is; each
    shard is opened once per process. Fingerprint: the bytes of every shard, in order of file name, with split, holdout,
    scale, shift and flip. Safetensors have no checksums: where the folder has a SHA256SUMS (`sha256sum *.safetensors >
    SHA256SUMS`), every shard is compared with it when it is opened, in the one reading that the fingerprint takes
    anyway. Raises UserError, in one line, for files that are missing, damaged or laid out differently.

    Attributes:
        path: file or folder.
        scale, shift: a number, or one for each channel, such as 1 / std and mean of latents that are standardised;
            0.18215 and 0 suit the autoencoder of Stable Diffusion.
        holdout: the share held out for "test", in [0, 1).
        flip: True adds `latents_flip`, the latents of the mirrored images, to "train", which makes it twice as long.
        num_classes: number of labels; None for the highest label + 1.
        features: True gives each item its `features` [T, D] (of the mirrored image, `features_flip`), an encoder's
            tokens for objectives that align with it (gen.models.encoders.stored).
    """

    pictures = False

    path: str
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    holdout: float = 0.1
    flip: bool = False
    num_classes: int | None = None
    features: bool = False

    def __post_init__(self) -> None:
        check_fields(self, scale="(0, inf)", shift="(-inf, inf)", holdout="[0, 1)", num_classes="[0, inf)")

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self._shards[0].shape
        return (c, h, w)

    @property
    def classes(self) -> int:
        return 0 if self._labels is None else check_labels(f"{self.path}: labels", self._labels, self.num_classes)

    def open(self, split: str) -> LatentSet:
        """Open "train" or "test"."""
        n = sum(shard.shape[0] for shard in self._shards)
        y = None if self.classes == 0 else self._labels
        rows = hold_out(self.path, split, n, self.holdout, None if y is None else y.tolist())
        options = f"{split} {self.holdout} {self.scale} {self.shift} {self.flip}" + " features" * self.features
        fingerprint = content_hash("latents", options, *self._hashes)
        flip = self.flip and split == "train"
        scale, shift = (self._by_channel(name) for name in ("scale", "shift"))
        return LatentSet(self._shards, rows, y, flip, shift, scale, fingerprint, self.features)

    def _by_channel(self, name: str) -> float | Tensor:
        """Return the scale or the shift, a number or [C, 1, 1]; UserError for another number of channels."""
        value, channels = getattr(self, name), self.shape[0]
        if not isinstance(value, tuple):
            return float(value)
        if len(value) != channels:
            raise UserError(f"Latents: {name} has {len(value)} numbers; {self.path} has {channels} channels")
        return torch.tensor(value).reshape(-1, 1, 1)

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        path = Path(self.path)
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no .safetensors file")
        shards = tuple(_inspect(file, self.flip, self.features) for file in files)
        first = shards[0]
        for shard in shards[1:]:
            if shard.describe(1) != first.describe(1):
                raise UserError(
                    f"{shard.path} {shard.describe()} does not go with {first.path} {first.describe()}: "
                    "all shards need the same shape, and labels in all or in none"
                )
        if not any(shard.shape[0] for shard in shards):
            raise UserError(f"{path} holds no latents: N is 0")
        return shards

    @cached_property
    def _labels(self) -> Tensor | None:
        if not self._shards[0].labelled:
            if self.num_classes is not None:
                raise UserError(f"{self.path} has no labels, but num_classes is {self.num_classes}")
            return None
        return torch.cat([_open(shard.path).get_tensor("labels").long() for shard in self._shards])

    @cached_property
    def _hashes(self) -> tuple[str, ...]:
        hashes = []
        for shard in self._shards:
            hashes.append(file_sha256(Path(shard.path)))
            shard.check_unchanged()
            if (first := hashes.index(hashes[-1])) < len(hashes) - 1:
                raise UserError(f"{shard.path} is a copy of {self._shards[first].path}: remove it, or mend it")
        files = (Path(shard.path) for shard in self._shards)
        check_sums(Path(self.path), dict(zip(files, hashes, strict=True)))
        return tuple(hashes)


@dataclass(frozen=True)
class Shard:
    """The header of a file: shape [N, C, H, W], whether there are labels, the shape of the features if used.

    `stamp` is size, time of change and inode of the file, by which a change is noticed.
    """

    path: str
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
        return f"{list(self.shape[first:])} {'with' if self.labelled else 'without'} labels{features}"


@dataclass(eq=False)
class LatentSet:
    """Items {"x": float32 [C, H, W], "y": int64 0-d, "features": float32 [T, D]} from rows of some shards.

    With flip, all rows come again, mirrored. No "y" without labels, no "features" unless `features`.
    """

    shards: tuple[Shard, ...]
    rows: list[int]
    y: Tensor | None
    flip: bool
    shift: float | Tensor
    scale: float | Tensor
    fingerprint: str
    features: bool = False
    _files: dict[int, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._ends = list(accumulate(shard.shape[0] for shard in self.shards))

    def __len__(self) -> int:
        return len(self.rows) * (2 if self.flip else 1)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        i = range(len(self))[i]  # as a list has it: negative from the end, IndexError past it
        row = self.rows[i % len(self.rows)]
        k = bisect.bisect_right(self._ends, row)
        self.shards[k].check_unchanged()
        if k not in self._files:
            self._files[k] = _open(self.shards[k].path)
        start = row - self._ends[k] + self.shards[k].shape[0]
        mirrored = "" if i < len(self.rows) else "_flip"

        def read(name: str) -> Tensor:
            found: Tensor = self._files[k].get_slice(name + mirrored)[start : start + 1][0]
            return found.float()

        item = {"x": (read("latents") - self.shift) * self.scale}
        if self.y is not None:
            item["y"] = self.y[row]
        return {**item, "features": read("features")} if self.features else item

    def where(self, i: int) -> str:
        """Return the file and the row of item i, in words."""
        row = self.rows[i % len(self.rows)]
        k = bisect.bisect_right(self._ends, row)
        return f"row {row - self._ends[k] + self.shards[k].shape[0]} of {self.shards[k].path}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}  # open files do not travel to worker processes


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
    if "latents" not in found:
        raise UserError(f"{file} has no latents; it has {', '.join(found) or 'nothing'}")
    shape, dtype = found["latents"]
    if len(shape) != 4 or dtype not in FLOATS:
        raise UserError(f"{file}: latents is {dtype} {shape}; allowed: floating point [N, C, H, W]")
    if "labels" in found and (found["labels"][0] != shape[:1] or found["labels"][1] not in ("I64", "I32")):
        raise UserError(f"{file}: labels is {found['labels'][1]} {found['labels'][0]}; allowed: I64 or I32 {shape[:1]}")
    if flip and "latents_flip" not in found:
        raise UserError(f"{file} has no latents_flip, which flip = True needs; it has {', '.join(found)}")
    if flip and found["latents_flip"][0] != shape:
        raise UserError(f"{file}: latents_flip is {found['latents_flip'][0]}, but latents is {shape}")
    required = ["features", *(["features_flip"] if flip else [])] if features else []
    for name in required:
        if name not in found:
            raise UserError(f"{file} has no {name}, which features = True needs; it has {', '.join(found)}")
        size, kind = found[name]
        if len(size) != 3 or size[0] != shape[0] or kind not in FLOATS:
            raise UserError(f"{file}: {name} is {kind} {size}; allowed: floating point [{shape[0]}, T, D]")
    sizes = tuple(found["features"][0]) if features else ()
    if features and flip and tuple(found["features_flip"][0]) != sizes:
        raise UserError(f"{file}: features_flip is {found['features_flip'][0]}, but features is {list(sizes)}")
    return Shard(str(file), tuple(shape), "labels" in found, sizes, stamp)
