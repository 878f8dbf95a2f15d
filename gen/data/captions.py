"""Captions: pictures of another source with their captions as a condition, by a tokenizer or a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import Json, name_of, part
from gen.data.lib.prompts import text_fields
from gen.data.lib.tensors import content_hash

__all__ = ["Captions"]

KEPT = 100_000  # captions whose embeddings stay in memory
DELEGATED = ("buckets", "bucket_counts", "where")


@dataclass(frozen=True)
class Captions:
    """A source of pictures with captions, whose items get the caption as a condition.

    With a tokenizer items have "text_ids" int64 [length], for a network that trains a text transformer of its own; with
    a frozen encoder of texts, "text" float32 [L, D], and "pooled" [P] if it has one. Either way "text_mask" bool, False
    at padding. An encoder runs where the data are read, on the CPU, once for each distinct caption; `gen encode --text`
    keeps embeddings instead.

    Attributes:
        data: with captions, see gen.data: a table, webdataset, huggingface or captioned_digits.
        text: a tokenizer of gen.text.tokenizers, or an encoder of gen.models.text_encoders.
        length: most tokens of a caption; longer ones are refused. Without effect on an encoder, which has a length of
            its own.
        labels: whether labels stay a condition beside the caption.
    """

    data: Any = part("data")
    text: Any = part("text.tokenizers", "models.text_encoders")
    length: int = 64
    labels: bool = False

    def __post_init__(self) -> None:
        check_fields(self, length="[1, 100000]")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def classes(self) -> int:
        return self.data.classes if self.labels else 0

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels that stay; () for none."""
        return tuple(getattr(self.data, "label_names", ())) if self.labels else ()

    @property
    def text_fields(self) -> Json:
        """The fields of a model of these captions, but for its text transformer's size."""
        if self._encoder is None:
            return {"text_vocab": self.text.vocab_size, "text_length": self.length, "text_depth": 2}
        return text_fields(self.null_text or {})

    @property
    def null_text(self) -> dict[str, Tensor] | None:
        """The condition of the empty caption, "text" [L, D] and "text_mask" [L]; None with a tokenizer."""
        if self._encoder is None:
            return None
        return {key: value[0] for key, value in self.encode_prompts([""]).items()}

    def __getattr__(self, name: str) -> Any:
        if name in ("buckets", "bucket_sizes"):
            return getattr(self.data, name)
        raise AttributeError(name)

    def open(self, split: str) -> CaptionItems:
        """Open "train" or "test"."""
        data = self.data.open(split)
        if not hasattr(data, "caption") or data.caption(0) is None:
            raise UserError(
                f"{name_of(type(self.data))} has no captions; they are a column of a table or of huggingface data, or "
                "files of webdataset"
            )
        return CaptionItems(data, self)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the condition of captions, one row each.

        Args:
            prompts: at least one; the empty one is no caption.

        Raises:
            UserError: for one of too many tokens, or with words that the tokenizer does not know.
        """
        if self._encoder is not None:
            return self._encoded(prompts)
        ids = torch.full((len(prompts), self.length), self.text.eos_token_ids[0])
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            known = self._ids(prompt)
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
            mask[row, : len(known)] = True
        return {"text_ids": ids, "text_mask": mask}

    def _ids(self, prompt: str) -> list[int]:
        """Return the ids of a caption, from memory if it has been met."""
        if (known := self._memory.get(prompt)) is None:
            try:
                known = self.text.encode(prompt)
            except UserError as error:
                raise UserError(f"caption {shown(prompt)}: {error}") from None
            if len(known) > self.length:
                raise UserError(f"caption {shown(prompt)} has {len(known)} tokens; at most length = {self.length}")
            self._keep(prompt, known)
        return list(known)

    def _encoded(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._memory]:
            encoded = self._encoder(new)
            fresh = {prompt: {key: value[i] for key, value in encoded.items()} for i, prompt in enumerate(new)}
        rows = [self._memory.get(prompt) or fresh[prompt] for prompt in prompts]
        for prompt in new:
            self._keep(prompt, fresh[prompt])
        return default_collate(rows)

    def _keep(self, prompt: str, value: Any) -> None:
        if len(self._memory) < KEPT:
            self._memory[prompt] = value

    @cached_property
    def _memory(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _encoder(self) -> Any:
        return self.text.load() if hasattr(self.text, "load") else None

    @cached_property
    def identity(self) -> str:
        """What decides the conditions besides the captions."""
        about = self.text.identity() if hasattr(self.text, "identity") else (repr(self.text), self.length)
        return content_hash("captions", repr(about), str(self.labels))


class CaptionItems:
    """The items of a data set, each with the condition of its caption; read in batches, as gen.data.DataSet has it.

    Args:
        data: with `caption`.
        source: whose captions these are.
    """

    def __init__(self, data: Any, source: Any) -> None:
        self.data, self.source = data, source

    def __getattr__(self, name: str) -> Any:
        if name in DELEGATED:
            return getattr(self.data, name)
        raise AttributeError(name)

    @property
    def fingerprint(self) -> str:
        captions = (str(self.data.caption(i)) for i in range(len(self)))
        return content_hash(self.data.fingerprint, self.source.identity, *captions)

    def __len__(self) -> int:
        return len(self.data)

    def caption(self, i: int) -> str:
        """Return the caption of item i."""
        return str(self.data.caption(i))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self._with_captions(default_collate([self.data[i]]), [i]).items()}

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i under the random choices of a key."""
        return {name: values[0] for name, values in self.draw_batch([i], [key]).items()}

    def draw_batch(self, rows: Sequence[int], keys: Sequence[int]) -> dict[str, Tensor]:
        """Return items, stacked, each under the random choices of its key."""
        data = self.data
        if hasattr(data, "draw_batch"):
            items = data.draw_batch(rows, keys)
        elif hasattr(data, "draw"):
            items = default_collate([data.draw(row, key) for row, key in zip(rows, keys, strict=True)])
        else:
            items = data.batch(rows) if hasattr(data, "batch") else default_collate([data[row] for row in rows])
        return self._with_captions(items, rows)

    def _with_captions(self, items: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        if not self.source.labels:
            items = {key: value for key, value in items.items() if key != "y"}
        return {**items, **self.source.encode_prompts([self.caption(row) for row in rows])}
