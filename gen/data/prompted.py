"""Captioned pictures, or a teacher's samples of prompts, as a pipeline of diffusers has them: latents, conditions."""

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
from gen.data.lib.tensors import content_hash

__all__ = ["Prompted"]

OTHERS = ("origin", "noise")  # keys of pairs that stay


@dataclass(frozen=True)
class Prompted:
    """A source with captions, for the network of a pipeline: items have its conditions in place of labels.

    Pictures become latents by the pipeline's autoencoder, once each; latents, as a store of `gen pairs` holds them,
    stay as they are.

    Attributes:
        data: with captions, see gen.data: a table, webdataset or huggingface, or the pairs of `gen pairs --prompts`.
        model: the pipeline, see gen.models.pipeline.
    """

    pictures = False  # in the sense of gen.data.lib.learned: x are latents

    data: Any = part("data")
    model: Any = part("models")

    def __post_init__(self) -> None:
        check_fields(self)
        if not hasattr(self.model, "encode_prompts"):
            raise UserError(f"Prompted: model = {shown(self.model)}; allowed: a pipeline, gen.models.pipeline")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.model.shape)

    @property
    def classes(self) -> int:
        return 0

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the condition of captions, one row each.

        Args:
            prompts: in words.
        """
        cond: dict[str, Tensor] = self.model.encode_prompts(prompts)
        return cond

    def open(self, split: str) -> PromptedItems:
        """Open "train" or "test"."""
        data = self.data.open(split)
        if not hasattr(data, "caption") or data.caption(0) is None:
            raise UserError(
                f"{name_of(type(self.data))} has no captions, which a pipeline's conditions are made of; they are a "
                "column of a table or of huggingface data, files of webdataset, or the prompts of gen pairs --prompts"
            )
        return PromptedItems(data, self, latents=tuple(self.data.shape) == self.shape)

    @cached_property
    def identity(self) -> Json:
        """What decides conditions and latents beside the captions and pictures."""
        return {"call": self.model.call, "dtype": self.model.dtype}


class PromptedItems:
    """The items of a data set with the conditions of their captions; read in batches, as gen.data.DataSet has it.

    Args:
        data: with `caption`.
        source: whose pipeline encodes.
        latents: whether x are latents already.
    """

    def __init__(self, data: Any, source: Prompted, latents: bool) -> None:
        self.data, self.source, self._are_latents = data, source, latents
        self._latents: dict[int, Tensor] = {}

    @cached_property
    def fingerprint(self) -> str:
        captions = (str(self.data.caption(i)) for i in range(len(self)))
        return content_hash("prompted", self.data.fingerprint, repr(self.source.identity), *captions)

    def __len__(self) -> int:
        return len(self.data)

    def caption(self, i: int) -> str:
        """Return the caption of item i."""
        return str(self.data.caption(i))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([i]).items()}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        cond = self.source.encode_prompts([self.caption(row) for row in rows])
        if not self._are_latents:
            return {"x": self._encoded(rows), **cond}
        items = self._items(rows)
        return {"x": items["x"], **{key: items[key] for key in OTHERS if key in items}, **cond}

    def _items(self, rows: Sequence[int]) -> dict[str, Tensor]:
        if hasattr(self.data, "batch"):
            batch: dict[str, Tensor] = self.data.batch(rows)
            return batch
        return default_collate([self.data[row] for row in rows])

    def _encoded(self, rows: Sequence[int]) -> Tensor:
        """Return the latents of pictures, each of which is encoded once."""
        if new := [row for row in dict.fromkeys(rows) if row not in self._latents]:
            self._latents.update(zip(new, self.source.model.latents(self._items(new)["x"]), strict=True))
        return torch.stack([self._latents[row] for row in rows])
