"""A subject or a style: a few pictures under one caption with a rare word, and pictures that keep what others mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import name_of, part
from gen.data.lib.tensors import content_hash

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """DreamBooth's data (Ruiz et al. 2022, arXiv 2208.12242): what few pictures share becomes the meaning of a word.

    The caption has a word that means little, "a sks dog" or "a dog in sks style". Training on them alone changes what
    the other words mean: the pictures of `prior` hold them, samples of the model itself of captions without the word,
    "a dog" (gen sample MODEL --prompts dogs.txt --out prior, then its metadata.jsonl as a table). The loss is then the
    paper's, instance + weight prior, but for a factor.

    Attributes:
        caption: of each of the pictures; None for captions of their own, such as those of a table.
        data: the pictures, see gen.data; labels are left out.
        prior: pictures with captions; None for no prior preservation.
        weight: lambda of the loss, positive: how many pictures of the prior come on one of `data`; the paper's 1.
    """

    caption: str | None
    data: Any = part("data")
    prior: Any = part("data", default=None)
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, weight="(0, 1000]")
        if self.caption is not None and not self.caption.strip():
            raise UserError('Subject needs a caption of its pictures, such as "a sks dog", or None for their own')

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def classes(self) -> int:
        return 0

    def open(self, split: str) -> SubjectItems:
        """Open "train" or "test"."""
        if self.prior is not None and tuple(self.prior.shape) != self.shape:
            raise UserError(f"Subject: prior has pictures {list(self.prior.shape)}, and data {list(self.shape)}")
        prior = None if self.prior is None else self.prior.open(split)
        if prior is not None and not _has_captions(prior):
            raise UserError(
                f"Subject: prior, {name_of(type(self.prior))}, has no captions, whose meaning it would keep"
            )
        data = self.data.open(split)
        if self.caption is None and not _has_captions(data):
            raise UserError(f"Subject: data, {name_of(type(self.data))}, has no captions; give one as `caption`")
        return SubjectItems(data, self.caption, prior, self.weight)


def _has_captions(data: Any) -> bool:
    """Return whether opened data have captions."""
    return hasattr(data, "caption") and data.caption(0) is not None


class SubjectItems:
    """Pictures of a subject and of a prior in turn, each at least once; the fewer ones again and again.

    Args:
        data, prior: opened; None for no prior.
        caption: of `data`; None for its own.
        weight: items of the prior for each of `data`.
    """

    def __init__(self, data: Any, caption: str | None, prior: Any, weight: float) -> None:
        self.data, self.prior, self._caption = data, prior, caption
        self._share = 0.0 if prior is None else weight / (1 + weight)

    def __len__(self) -> int:
        if self.prior is None:
            return len(self.data)
        return max(math.ceil(len(self.data) / (1 - self._share)), math.ceil(len(self.prior) / self._share))

    @cached_property
    def fingerprint(self) -> str:
        prior = () if self.prior is None else (self.prior.fingerprint,)
        one = self.prior is None and self._caption is not None
        captions = () if one else map(self.caption, range(len(self)))
        return content_hash("subject", self.data.fingerprint, str(self._caption), repr(self._share), *prior, *captions)

    def at(self, i: int) -> tuple[Any, int]:
        """Return the data set that item i is of, and its index there.

        Args:
            i: from 0.
        """
        before = math.floor(i * self._share + 1e-9)  # items of the prior before this one
        if math.floor((i + 1) * self._share + 1e-9) > before:
            return self.prior, before % len(self.prior)
        return self.data, (i - before) % len(self.data)

    def caption(self, i: int) -> str:
        """Return the caption of item i."""
        data, row = self.at(i)
        return self._caption if data is self.data and self._caption is not None else str(data.caption(row))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        data, row = self.at(i)
        return {"x": data[row]["x"]}

    def draw_batch(self, rows: Sequence[int], keys: Sequence[int]) -> dict[str, Tensor]:
        """Return items, stacked, each under the random choices of its key."""
        return {"x": default_collate([self._drawn(*self.at(i), key) for i, key in zip(rows, keys, strict=True)])}

    def _drawn(self, data: Any, row: int, key: int) -> Tensor:
        item: dict[str, Tensor] = data.draw(row, key) if hasattr(data, "draw") else data[row]
        return item["x"]
