"""Captions as a condition: embeddings that are given, or ids for a small transformer trained with the denoiser.

Keys of cond: "text" [B, L, text_width], embeddings of a frozen encoder, or "text_ids" int64 [B, L], for networks with a
transformer of their own; "text_mask" bool [B, L], False at padding; and, for networks that take one, "pooled" [B, P].
A row whose mask has no token has no caption: its tokens are the network's null tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.kernels.attention import attention
from gen.models.layers import family
from gen.models.layers.block import run_block
from gen.models.layers.text import AttentionContext, TextBlock, rope_angles

__all__ = ["CaptionEmbedding", "CrossAttention", "TextTransformer", "check_captions", "check_text_fields"]


def check_text_fields(spec: Any) -> None:
    """Check the fields that families of captions share.

    Args:
        spec: with text_width, text_length, text_vocab, text_depth and heads.

    Raises:
        UserError: for fields that do not fit together.
    """
    family.at_least(spec, text_width=1, text_length=1, text_vocab=0, text_depth=0)
    name = type(spec).__name__
    if bool(spec.text_vocab) != bool(spec.text_depth):
        raise UserError(
            f"{name}: text_vocab {spec.text_vocab}, text_depth {spec.text_depth}; give both, for a text transformer "
            "trained with the model, or neither, for given embeddings"
        )
    if spec.text_vocab:
        family.divisible(spec, "text_width", 2 * spec.heads, "2 * heads")
        if spec.null_text == "stored":
            raise UserError(f"{name}: null_text stored is of given embeddings; with text_vocab it is learned")


def check_captions(spec: Any, cond: Cond, rows: int) -> None:
    """Raise UserError unless the caption of a condition fits; without one it does.

    Args:
        spec: of the network.
        cond: the condition.
        rows: of the batch.
    """
    name, key, other = type(spec).__name__, *(("text_ids", "text") if spec.text_vocab else ("text", "text_ids"))
    if other in cond:
        what = "ids, for a text transformer of its own" if spec.text_vocab else "embeddings"
        raise UserError(f"this {name} takes captions as cond[{key!r}], {what}; given: cond[{other!r}]")
    if key not in cond:
        return
    text, mask = cond[key], cond.get("text_mask")
    form = (rows, *text.shape[1:2]) if spec.text_vocab else (rows, *text.shape[1:2], spec.text_width)
    if (
        tuple(text.shape) != form
        or text.shape[1] > spec.text_length
        or text.is_floating_point() == bool(key == "text_ids")
    ):
        width = "" if spec.text_vocab else f", {spec.text_width}"
        raise UserError(
            f"cond[{key!r}] is {text.dtype} {list(text.shape)}; this {name} takes "
            f"[{rows}, at most {spec.text_length}{width}] {'int64' if spec.text_vocab else 'embeddings'}"
        )
    if mask is None or mask.dtype != torch.bool or mask.shape != text.shape[:2]:
        given = "missing" if mask is None else f"{mask.dtype} {list(mask.shape)}"
        raise UserError(f"cond['text_mask'] is {given}; it must be torch.bool {list(text.shape[:2])}")


class TextTransformer(nn.Module):
    """Ids [B, L] and their mask to embeddings [B, L, width]: Llama's blocks, bidirectional, trained from scratch."""

    def __init__(self, vocab: int, width: int, depth: int, heads: int):
        super().__init__()
        self.head_width = width // heads
        self.embed = nn.Embedding(vocab, width)
        hidden = 8 * math.ceil(width / 3)
        self.blocks = nn.ModuleList(TextBlock(i, width, heads, heads, hidden, False, True, 1e-6) for i in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        cos, sin = rope_angles(torch.arange(ids.shape[1], device=ids.device), self.head_width, 10_000.0)
        context = AttentionContext(cos, sin, mask=mask[:, None])
        h = self.embed(ids)  # [B, L, width]
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, context, i, None)
        return self.norm(h)


class CaptionEmbedding(nn.Module):
    """The caption of a condition as embeddings [B, L, text_width] and their mask [B, L].

    Null tokens, of rows without a caption: one that is learned, or the stored embedding of the empty caption, a buffer
    [text_length, text_width] with its mask, which is part of the weights' file. Networks with a pooled_width store the
    empty caption's pooled embedding, too; that of a learned null token is zeros.
    """

    null_text: Tensor
    null_mask: Tensor
    null_stored: Tensor
    null_pooled: Tensor

    def __init__(self, spec: Any):
        super().__init__()
        width = spec.text_width
        self.encoder = TextTransformer(spec.text_vocab, width, spec.text_depth, spec.heads) if spec.text_vocab else None
        self.learned = spec.null_text == "learned"
        if self.learned:
            self.null_text = nn.Parameter(0.02 * torch.randn(1, width))
        else:
            self.register_buffer("null_text", torch.zeros(spec.text_length, width))
            self.register_buffer("null_mask", torch.zeros(spec.text_length, dtype=torch.bool))
            self.register_buffer("null_stored", torch.tensor(False))
        width = getattr(spec, "pooled_width", 0)
        self.register_buffer("null_pooled", torch.zeros(width), persistent=bool(width) and not self.learned)

    def store_null(self, text: Tensor, mask: Tensor, pooled: Tensor | None = None) -> None:
        """Keep the embedding of the empty caption, [L, text_width], [L] and [pooled_width], as that of no caption.

        Raises:
            UserError: for one of another width, of more tokens, or where null tokens are learned.
        """
        n, (length, width) = len(text), self.null_text.shape
        if self.learned or text.shape[1:] != (width,) or n > length:
            kind = "learned" if self.learned else f"at most {[length, width]}"
            raise UserError(f"the stored embedding of no caption is {list(text.shape)}; the network's is {kind}")
        if pooled is not None and len(self.null_pooled):
            if pooled.shape != self.null_pooled.shape:
                given, own = list(pooled.shape), list(self.null_pooled.shape)
                raise UserError(f"the pooled embedding of no caption is {given}; the network's is {own}")
            self.null_pooled.copy_(pooled)
        self.null_text.copy_(pad(text, (0, 0, 0, length - n)))
        self.null_mask.copy_(pad(mask, (0, length - n)))
        self.null_stored.fill_(True)

    def check_null(self) -> None:
        """Raise UserError where the embedding of no caption is to be stored, and is not."""
        if not self.learned and not bool(self.null_stored):
            raise UserError(
                "the embedding of no caption is not stored with this network: give the negative prompt '', or train it "
                "on data with one"
            )

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor]:
        null = self.null_text.expand(rows, -1, -1)
        null_mask = null.new_ones(rows, 1, dtype=torch.bool) if self.learned else self.null_mask.expand(rows, -1)
        key = "text" if self.encoder is None else "text_ids"
        if key not in cond:
            return null, null_mask
        mask = cond["text_mask"]
        text = cond[key].to(null.dtype) if self.encoder is None else self.encoder(cond[key], mask)
        length = max(text.shape[1], null.shape[1])
        (text, null), (mask, null_mask) = (
            [pad(v, (*[0, 0] * (v.ndim - 2), 0, length - v.shape[1])) for v in pair]
            for pair in ((text, null), (mask, null_mask))
        )
        none = ~mask.any(1, keepdim=True)  # [B, 1]
        return torch.where(none[..., None], null, text), torch.where(none, null_mask, mask)

    def pooled(self, cond: Cond, rows: int) -> Tensor:
        """Return the pooled embedding of a condition's captions, [B, P]: that of no caption where there is none."""
        null = self.null_pooled.expand(rows, -1)
        if "pooled" not in cond:
            return null
        given, mask = cond["pooled"].to(null.dtype), cond.get("text_mask")
        return given if mask is None else torch.where(mask.any(1, keepdim=True), given, null)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens h [B, T, width] to a caption [B, L, width] where its mask [B, L] is True."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f, x in ((self.q, h), (self.k, text), (self.v, text)))
        return self.proj(attention(q, k, v, attn_mask=mask[:, None]).flatten(2))
