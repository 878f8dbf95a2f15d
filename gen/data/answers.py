"""Answers: what a text model wrote after the prompts of another data set, for its students."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.data.lib.tensors import check_holdout
from gen.data.pairs import PairSet, read_shards

__all__ = ["Answers"]


@dataclass(frozen=True)
class Answers:
    """What gen.distillers.lib.answers wrote into a folder: texts, and how they were decoded.

    of: the data whose prompts these are; its tokeniser is theirs. holdout: the share, at the end, that "test" opens.
    Items are {"x": int64 [L], "prompt", "length": int64 0-d}, from a length on padded; "commit_step" int64 [L] is the
    step that committed a place, or the columns of a replay (gen.distillers.learn2pd).
    """

    path: str
    of: Any = part("data")
    holdout: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", build("data", self.of))
        check_holdout(self, self.holdout)

    @cached_property
    def info(self) -> dict[str, Any]:
        """The manifest of any shard: what all shards have in common."""
        found = next(Path(self.path).glob("shard-*"), None)
        if found is None:
            raise UserError(f"{self.path} holds no answers: make them with gen distill")
        return checkpoints.read(found, verify=False)

    @property
    def tokenizer(self) -> Any:
        return self.of.tokenizer

    @property
    def vocab_size(self) -> int:
        """How many ids there are, stop and mask among them."""
        return int(self.of.vocab_size)

    @property
    def shape(self) -> tuple[int]:
        """Of one item."""
        return (int(self.info["shape"][0]),)

    @property
    def classes(self) -> int:
        """Text has no labels."""
        return 0

    def open(self, split: str) -> PairSet:
        """The items of "train" or "test"."""
        columns, fingerprint = read_shards(self.path, "answers.safetensors", self.info["shards"])
        n = len(columns["x"])
        cut = n - round(n * self.holdout)
        if not n:
            raise UserError(f"{self.path}: the teacher gave no right answer to {self.info['n']} prompts")
        rows = slice(0, cut) if split == "train" else slice(cut, None)
        return PairSet({k: v[rows] for k, v in columns.items()}, fingerprint)
