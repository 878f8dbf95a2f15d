"""Answers of a text model to the prompts of another data set, for its students."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, part
from gen.data.pairs import PairSet, read_store

if TYPE_CHECKING:
    from gen.text.contracts.tokenizer import Tokenizer

__all__ = ["Answers"]


@dataclass(frozen=True)
class Answers:
    """A folder of texts that gen.distillers.lib.answers wrote, and how they were decoded.

    Items are {"x": int64 [L], "prompt": int64 0-d}, with "length" where the prompts' data have one, with "commit_step"
    int64 [L], the step that committed each token, or with the columns of a replay (gen.distillers.learn2pd).

    Attributes:
        path: the folder of shards.
        of: the text data whose prompts these are, a plug-in of gen.data; its tokeniser is theirs.
        holdout: the share, at the end, that "test" opens; in [0, 1).
    """

    path: str
    of: Any = part("data")
    holdout: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, holdout="[0, 1)")

    @cached_property
    def info(self) -> Json:
        """What all shards of the store share."""
        return read_store(Path(self.path), "answers")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokeniser of the data that the prompts are from."""
        return cast("Tokenizer", self.of.tokenizer)

    @property
    def vocab_size(self) -> int:
        """The number of token ids, stop and mask tokens included."""
        return int(self.of.vocab_size)

    @property
    def shape(self) -> tuple[int]:
        """The shape (L,) of one item."""
        return (int(self.info["shape"][0]),)

    @property
    def classes(self) -> int:
        """0: text has no labels."""
        return 0

    def open(self, split: str) -> PairSet:
        """Open "train" or "test"."""
        answers = PairSet.read(self.path, "answers")
        if not len(answers):
            raise UserError(f"{self.path}: the teacher gave no right answer to {self.info['n']} prompts")
        return answers.split(self.path, split, self.holdout)
