"""Captions that samples are drawn of: the lines of a file, or those of the held-out data of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gen.config.errors import UserError
from gen.config.reading import read_lines
from gen.config.spec import build
from gen.data.lib.prompts import ENCODER_MISSING
from gen.data.lib.tensors import content_hash
from gen.eval.record import CaptionsInfo
from gen.pipeline import Pipeline

__all__ = ["SampleCaptions", "captions_of"]


@dataclass(frozen=True)
class SampleCaptions:
    """Captions of samples: sample i has caption i mod their number.

    Attributes:
        source: in words, such as the file's name.
        captions: at least one.
    """

    source: str
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, n: int) -> list[str]:
        """Return the captions of n samples from sample `start` on."""
        return [self.captions[i % len(self.captions)] for i in range(start, start + n)]

    @property
    def info(self) -> CaptionsInfo:
        return CaptionsInfo(self.source, len(self.captions), content_hash("captions", *self.captions))


def captions_of(
    pipeline: object, prompts: str | Path | None, seed: int, data: Callable[[], object]
) -> SampleCaptions | None:
    """Return the captions that samples of a model are drawn of; None for a model that takes none.

    Args:
        pipeline: whose samples they are.
        prompts: a text file with a caption a line; None for those of the held-out data.
        seed: of the order of those.
        data: returns the spec of the data that the model learned.

    Raises:
        UserError: for a model that takes captions where none are known, or nothing that reads them.
    """
    if not isinstance(pipeline, Pipeline):
        return None
    if pipeline.encode_prompts is None and "text_mask" not in pipeline.net.conditions:
        return None
    if pipeline.encode_prompts is None:
        raise UserError(f"{pipeline.name} takes captions by an encoder: {ENCODER_MISSING}")
    if prompts is not None:
        lines = tuple(read_lines(Path(prompts)))
        if not lines:
            raise UserError(f"{prompts} is empty: give a caption a line")
        return SampleCaptions(f"lines of {Path(prompts).name}", lines)
    if own := getattr(pipeline.encode_prompts, "prompts", ()):
        return SampleCaptions("prompts of the pipeline", tuple(own))
    hint = "give --prompts FILE, a caption a line (prompts=...)"
    try:
        held_out = build("data", data()).open("test")
    except UserError as error:
        raise UserError(f"{pipeline.name} takes captions: {hint}; those of its data cannot be read: {error}") from None
    caption = getattr(held_out, "caption", None)
    words = [] if caption is None else [caption(i) for i in range(len(held_out))]
    if not words or None in words:
        raise UserError(f"{pipeline.name} takes captions, and its held-out data has none in words: {hint}")
    return SampleCaptions(f"the held-out data, in the order of seed {seed}", _shuffled(words, seed))


def _shuffled(words: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return captions in an order of the seed: the data's own may be sorted, and fewer samples would lack kinds."""
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))
    return tuple(words[i] for i in order.tolist())
