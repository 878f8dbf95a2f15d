"""Operations on the tokens of a sample that this process has, beside those of a text that all have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.exchanges import Evaluation
from gen.models.engines.lib.operations import PartOperations, attend, heads_first

__all__ = ["TokenOperations", "keys_mask"]


class TokenOperations(PartOperations):
    """Computes, within a `with`, attention of the own tokens to all, alone or joined with those of a text.

    All processes compute the text, of which they must have the same: its queries attend to the image's keys of the step
    before throughout, the own ones too.

    Attributes:
        own: number of this process's tokens.
        text_first: whether a text that attends jointly lies before the image.
    """

    def __init__(self, exchange: PatchExchange, evaluation: Evaluation, portion: float | None):
        super().__init__(exchange, evaluation, portion)
        self.own, self.text_first = 0, False

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return torch's attention [B, heads, L + n, d] of a text and the own tokens, in their order, or of one."""
        text = query.shape[2] - self.own
        if self.cross or not text:
            return super().attention(query, key, value, attn_mask, *args, **kwargs)
        sizes = [text, self.own] if self.text_first else [self.own, text]
        (q_text, k_text, v_text), (q, k, v) = (
            [h.split(sizes, 2)[i if self.text_first else 1 - i] for h in (query, key, value)] for i in (0, 1)
        )
        count, sent = len(self.exchange.own), self.keys(k, v)
        fresh = torch.stack(sent.chunk(count, 1))  # [own, B, n, 2, heads, d]
        parts, _ = self.evaluation.exchanged(self.key(), lambda: self.exchange.start_all(fresh))

        mask = None if attn_mask is None else self._mask(attn_mask, text)

        def attended(queries: Tensor, images: list[Tensor]) -> Tensor:
            k, v = heads_first(torch.cat(images, 1))
            keys, values = ((k_text, k), (v_text, v)) if self.text_first else ((k, k_text), (v, v_text))
            return attend(queries, torch.cat(keys, 2), torch.cat(values, 2), mask, *args, **kwargs)

        out = []
        for part, queries, own in zip(self.exchange.own, q.chunk(count, 2), fresh, strict=True):
            out.append(attended(queries, [own if i == part else other for i, other in enumerate(parts)]))
        image, words = torch.cat(out, 2), attended(q_text, list(parts))
        return torch.cat([words, image] if self.text_first else [image, words], 2)

    def _mask(self, mask: Tensor, text: int) -> Tensor:
        """Return a mask of all keys."""
        whole = self.own // len(self.exchange.own) * self.exchange.parts
        return keys_mask(mask, text, self.own, whole, self.text_first, "patches")


def keys_mask(mask: Tensor, text: int, own: int, whole: int, text_first: bool, engine: str) -> Tensor:
    """Return a mask of all keys: one that a block has made for its own tokens is of the text's padding.

    Args:
        mask: [..., 1, keys].
        text, own, whole: numbers of tokens of a text, of the image at hand, and of all of it.
        text_first: whether the text lies before the image.
        engine: that says so, for the UserError for a mask that is not of the keys alone.
    """
    if mask.shape[-2] != 1 or mask.shape[-1] not in (text + whole, text + own):
        raise UserError(f"the engine '{engine}': attention of text and image has a mask that is not of the keys alone")
    if mask.shape[-1] == text + whole:
        return mask
    words = mask[..., :text] if text_first else mask[..., own:]
    image = mask[..., -1:] if text_first else mask[..., :1]
    image = image.expand(*image.shape[:-1], whole)
    return torch.cat([words, image] if text_first else [image, words], -1)
