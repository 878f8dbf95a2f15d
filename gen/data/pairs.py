"""Pairs of noise and the sample a teacher generated from it, for distillation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.data.lib.tensors import check_holdout

__all__ = ["Pairs", "PairSet", "read_shards"]  # noqa: RUF022 - the plug-in comes first


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs that gen.distillers.lib.pairs wrote: samples, labels and the seed of each one's noise.

    Items are {"x", "y", "origin"}, origin the int64 seed of the noise; or, if the pairs are of real data,
    {"x", "y", "noise"}.

    Attributes:
        path: the folder of shards.
        holdout: the share, at the end, that "test" opens; in [0, 1).
    """

    path: str
    holdout: float = 0.05

    def __post_init__(self) -> None:
        check_holdout(self, self.holdout)

    @cached_property
    def info(self) -> Json:
        """The manifest of any shard, for the keys that are the same in all shards."""
        found = next(Path(self.path).glob("shard-*"), None)
        if found is None:
            raise UserError(f"{self.path} holds no pairs: make them with gen pairs, or gen distill")
        return checkpoints.read(found, verify=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.info["shape"])

    @property
    def classes(self) -> int:
        return int(self.info["classes"])

    def open(self, split: str) -> PairSet:
        columns, fingerprint = read_shards(self.path, "pairs.safetensors", self.info["shards"])
        cut = len(columns["x"]) - round(len(columns["x"]) * self.holdout)
        rows = slice(0, cut) if split == "train" else slice(cut, None)
        return PairSet({k: v[rows] for k, v in columns.items()}, fingerprint)


@dataclass(frozen=True)
class PairSet:
    """Columns of equal length as a map-style data set.

    Attributes:
        columns: tensors [N, ...] by key of an item.
        fingerprint: hash (hex) of the shards they are from.
    """

    columns: dict[str, Tensor]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {k: v[i] for k, v in self.columns.items()}


def read_shards(folder: str, file: str, count: int) -> tuple[dict[str, Tensor], str]:
    """Read a file of every shard of a folder, and concatenate the columns.

    Args:
        folder: the folder with the shards shard-*.
        file: the file's name in a shard.
        count: number of shards there must be.

    Returns:
        Tensors [N, ...] by key, and their fingerprint.

    Raises:
        UserError: if a shard is missing or damaged.
    """
    shards = sorted(Path(folder).glob("shard-*"))[:count]
    if len(shards) < count:
        raise UserError(f"{folder} holds {len(shards)} of {count} shards: run the command again")
    infos = [checkpoints.read(shard) for shard in shards]
    parts = [checkpoints.read_tensors(s, file, i) for s, i in zip(shards, infos, strict=True)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}, "+".join(i["sha256"][:16] for i in infos)
