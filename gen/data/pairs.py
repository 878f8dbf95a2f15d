"""Pairs of noise and what a teacher made of it, for distillation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError

__all__ = ["Pairs", "PairSet", "read_shards"]  # noqa: RUF022 - the plug-in comes first


@dataclass(frozen=True)
class Pairs:
    """What gen.distillers.lib.pairs wrote: samples and labels, with the seed of each one's noise instead of the noise.

    holdout: the share, at the end, that "test" opens. Items are {"x", "y", "origin"}, origin the int64 seed; or, if the
    pairs are of real data, {"x", "y", "noise"}.
    """

    path: str
    holdout: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UserError(f"Pairs: holdout = {self.holdout}; it must be in [0, 1)")

    @cached_property
    def info(self) -> dict[str, Any]:
        """The manifest of any shard: what all shards have in common."""
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
    """Columns of equal length as a map-style data set."""

    columns: dict[str, Tensor]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {k: v[i] for k, v in self.columns.items()}


def read_shards(folder: str, file: str, count: int) -> tuple[dict[str, Tensor], str]:
    """The columns of `file` in all `count` shards of a folder, end to end, and a fingerprint of them.

    Raises UserError if a shard is missing or damaged.
    """
    shards = sorted(Path(folder).glob("shard-*"))[:count]
    if len(shards) < count:
        raise UserError(f"{folder} holds {len(shards)} of {count} shards: run the command again")
    infos = [checkpoints.read(shard) for shard in shards]
    parts = [checkpoints.read_tensors(s, file, i) for s, i in zip(shards, infos, strict=True)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}, "+".join(i["sha256"][:16] for i in infos)
