"""Captioned pictures, or a teacher's samples of prompts, as a pipeline of diffusers has them: latents, conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import name_of, part
from gen.data.captions import CaptionItems
from gen.data.lib.tensors import content_hash

__all__ = ["Prompted"]

KEPT = 2**30  # bytes of latents that stay in memory
OTHERS = ("origin", "noise")  # keys of pairs that stay


@dataclass(frozen=True)
class Prompted:
    """A source with captions, for the network of a pipeline: items have its conditions in place of labels.

    Pictures, mirrored and cropped as their source draws them, become latents by the pipeline's autoencoder; latents, as
    a store of `gen pairs` holds them, stay as they are.

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
    def identity(self) -> str:
        """What decides conditions and latents beside the captions and pictures."""
        return content_hash("prompted", repr(self.model.call), self.model.dtype)


class PromptedItems(CaptionItems):
    """The items of a data set with the conditions of their captions; read in batches, as gen.data.DataSet has it.

    Args:
        data: with `caption`.
        source: whose pipeline encodes.
        latents: whether x are latents already.
    """

    def __init__(self, data: Any, source: Prompted, latents: bool) -> None:
        super().__init__(data, source)
        self._are_latents = latents
        self._latents: dict[bytes, Tensor] = {}

    def _with_captions(self, items: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        x = items["x"] if self._are_latents else self._encoded(items["x"])
        kept = {key: items[key] for key in OTHERS if key in items}
        return {"x": x, **kept, **self.source.encode_prompts([self.caption(row) for row in rows])}

    def _encoded(self, pictures: Tensor) -> Tensor:
        """Return the latents of pictures; equal ones are encoded once."""
        keys = [hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).digest() for picture in pictures]
        if new := [i for i, key in enumerate(keys) if key not in self._latents]:
            fresh = self.source.model.latents(pictures[new])
            if (len(self._latents) + len(new)) * fresh[0].nbytes > KEPT:
                self._latents.clear()
            self._latents |= {keys[i]: row for i, row in zip(new, fresh, strict=True)}
        return torch.stack([self._latents[key] for key in keys])
