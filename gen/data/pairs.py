"""Pairs of noise and the sample a teacher generated from it, for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import read_json
from gen.config.spec import Json, digest
from gen.data.lib.tensors import check_split

__all__ = ["Pairs", "PairSet", "check_shard", "read_store", "shard_name"]  # noqa: RUF022 - the plug-in comes first

PROMPTS = "prompts.json"  # in the folder of pairs of prompts


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs that gen.distillers.lib.pairs wrote: samples, labels and the seed of each one's noise.

    Items are {"x", "y", "origin"}, origin the int64 seed of the noise; or, if the pairs are of real data,
    {"x", "y", "noise"}. Pairs of prompts have them as captions.

    Attributes:
        path: the folder of shards.
        holdout: the share, at the end, that "test" opens; in [0, 1).
    """

    generated = True  # by a teacher, whose latents' scale is theirs

    path: str
    holdout: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, holdout="[0, 1)")

    @cached_property
    def info(self) -> Json:
        """What all shards of the store share."""
        return read_store(Path(self.path), "pairs")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.info["shape"])

    @property
    def classes(self) -> int:
        return int(self.info["classes"])

    def open(self, split: str) -> PairSet:
        pairs = PairSet.read(self.path, "pairs")
        if "prompt" in pairs.columns:
            pairs = replace(pairs, prompts=_prompts(Path(self.path) / PROMPTS, self.info))
        return pairs.split(self.path, split, self.holdout)


@dataclass(frozen=True)
class PairSet:
    """Columns of equal length as a map-style data set.

    Attributes:
        columns: tensors [N, ...] by key of an item.
        fingerprint: hash (hex) of the shards they are from.
        prompts: of the store, of which the column "prompt" holds the indices; () for pairs without.
    """

    columns: dict[str, Tensor]
    fingerprint: str
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        return {k: v[i] for k, v in self.columns.items() if not (self.prompts and k == "prompt")}

    def caption(self, i: int) -> str | None:
        """Return the prompt of item i; None of pairs without prompts."""
        return self.prompts[int(self.columns["prompt"][i])] if self.prompts else None

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        return self[torch.tensor(rows)]

    @classmethod
    def read(cls, folder: str, kind: str) -> PairSet:
        """Read every shard of a store, and concatenate the columns.

        Args:
            folder: of the store.
            kind: "pairs" or "answers", the name of a shard's file of tensors.

        Raises:
            UserError: if a shard is missing, damaged, a copy of another one, or of another store.
        """
        store, shards = read_store(Path(folder), kind), sorted(Path(folder).glob("shard-*"))
        if len(shards) < store["shards"]:
            raise UserError(f"{folder} holds {len(shards)} of {store['shards']} shards: run the command again")
        if len(shards) > store["shards"]:
            raise UserError(f"{shards[-1]} is too many: the store has {store['shards']} shards")
        infos = [check_shard(shard, store, i) for i, shard in enumerate(shards)]
        parts = list[dict[str, Tensor]]()
        for shard, info in zip(shards, infos, strict=True):
            part = checkpoints.read_tensors(shard, f"{kind}.safetensors", info)
            if part.keys() != (parts or [part])[0].keys() or any(len(v) != info["rows"] for v in part.values()):
                raise UserError(f"{shard}: {', '.join(part)} have other lengths or names than its manifest says")
            parts.append(part)
        columns = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        return cls(columns, "+".join(info["sha256"][:16] for info in infos))

    def split(self, where: str, split: str, holdout: float) -> PairSet:
        """Return the rows of a split: the last ones are "test", at least one of them unless the share is 0.

        Args:
            where: what they are of, for the message.
            split: "train" or "test".
            holdout: the share of "test".

        Raises:
            UserError: if the split is unknown or has no row.
        """
        check_split(split)
        cut = len(self) - (max(1, round(len(self) * holdout)) if holdout else 0)
        rows = slice(0, max(0, cut)) if split == "train" else slice(max(0, cut), None)
        if not len(self.columns["x"][rows]):
            raise UserError(f"{where}: {split} has none of its {len(self)} rows at holdout = {holdout}")
        return replace(self, columns={k: v[rows] for k, v in self.columns.items()})


def _prompts(file: Path, store: Json) -> tuple[str, ...]:
    """Return the prompts of a store; UserError for other ones than it was made with."""
    prompts = read_json(file)
    if digest(prompts) != store.get("prompts"):
        raise UserError(f"{file} has other prompts than the pairs beside it were made with")
    return tuple(prompts)


def shard_name(index: int) -> str:
    """Return the name of a shard's folder, such as shard-00003.

    Args:
        index: of the shard, from 0.
    """
    return f"shard-{index:05d}"


def read_store(folder: Path, kind: str) -> Json:
    """Return what all shards of a store share, from the first that is there.

    Args:
        folder: of the store.
        kind: "pairs" or "answers".

    Raises:
        UserError: if there is none.
    """
    first = min(folder.glob("shard-*"), default=None)
    if first is None:
        raise UserError(f"{folder} holds no {kind}: make them with gen pairs, or gen distill")
    store = checkpoints.read(first, verify=False).get("store")
    if not isinstance(store, dict) or not all(isinstance(store.get(key), int) for key in ("n", "shards", "size")):
        raise UserError(f"{first} is no shard of {kind}")
    return store


def check_shard(shard: Path, store: Json, index: int) -> Json:
    """Return the manifest of a shard that is this one of this store.

    Args:
        shard: its folder.
        store: what the store's shards share.
        index: of the shard.

    Raises:
        UserError: for a shard that was copied or renamed, or is of another store.
    """
    info = checkpoints.read(shard, verify=False)
    theirs = info.get("store")
    if theirs != store:
        there = theirs if isinstance(theirs, dict) else {}
        differs = ", ".join(key for key in {**there, **store} if there.get(key) != store.get(key))
        raise UserError(f"{shard} is of another store: {differs} differ. Choose another folder, or make it again")
    if (info.get("index"), shard.name) != (index, shard_name(index)):
        raise UserError(f"{shard} is shard {info.get('index')} of its store, not {index}: was it copied or renamed?")
    return info
