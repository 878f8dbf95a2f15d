"""Text: the transformer of masked language diffusion, a Predictor (LLaDA, Dream, Fast-dLLM v2, BD3-LM are such)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import BIDIRECTIONAL, BlockCausal, MaskRule
from gen.models.layers import family
from gen.models.layers.block import run_block
from gen.models.layers.text import AttentionContext, TextBlock, angles
from gen.text.contracts import KvCache, Span

__all__ = ["Text", "TextNet"]

_QWEN = {"kv_heads": 4, "theta": 1e6, "norm_eps": 1e-6, "qkv_bias": True, "shift": 1}
_QWEN_7B = {**_QWEN, "width": 3584, "depth": 28, "heads": 28, "hidden": 18944, "vocab_size": 152064}


@dataclass(frozen=True)
class Text:
    """A Llama-like transformer that sees both ways: RMS norms, rotary places, SwiGLU, shared keys and values.

    vocab_size: ids, the mask among them. length: of the longest canvas. kv_heads: heads of keys and values, None for as
    many as `heads`. hidden: of the SwiGLU, None for 8/3 of the width. theta: the base of the rotary angles. qkv_bias,
    qk_norm: see gen.models.layers.text. tied: the head is the table of tokens. block: attention is block-causal in
    blocks of so many places from place 0; None: every place sees every other. shift: 1 if a place is predicted by the
    output at the place before. mask, stops: ids. tokenizer: how its words become ids, None if nobody knows.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "nano": {"length": 128, "width": 64, "depth": 2, "heads": 4},
        "small": {"length": 1024, "width": 768, "depth": 12, "heads": 12},  # the size of MDLM and BD3-LM
        "LLaDA-8B": {
            "vocab_size": 126464,
            "length": 4096,
            "width": 4096,
            "depth": 32,
            "heads": 32,
            "hidden": 12288,
            "theta": 5e5,
            "norm_eps": 1e-5,
            "mask_token_id": 126336,
            "eos_token_ids": (126081, 126348),
        },
        "Dream-7B": {**_QWEN_7B, "length": 2048, "mask_token_id": 151666, "eos_token_ids": (151643, 151645)},
        "Fast-dLLM-v2-7B": {
            **_QWEN_7B,
            "length": 32768,
            "block_size": 32,
            "mask_token_id": 151665,
            "eos_token_ids": (151645,),
        },
    }

    vocab_size: int = 258
    length: int = 256
    width: int = 384
    depth: int = 6
    heads: int = 6
    kv_heads: int | None = None
    hidden: int | None = None
    theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    block_size: int | None = None
    shift: int = 0
    mask_token_id: int = 257
    eos_token_ids: tuple[int, ...] = (256,)
    tokenizer: Any = part("text.tokenizers", default=None)

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", build("text.tokenizers", self.tokenizer))
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        family.at_least(self, vocab_size=2, length=1, width=2, depth=1, heads=1)
        for name in ("kv_heads", "hidden", "block_size"):
            if getattr(self, name) is not None:
                family.at_least(self, **{name: 1})
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if self.width % (2 * self.heads) or self.heads % kv_heads:
            raise UserError(
                f"Text: width {self.width}, heads {self.heads}, kv_heads {kv_heads}; width / heads must be an even "
                "number, and heads / kv_heads a whole one"
            )
        if self.shift not in (0, 1):
            raise UserError(f"Text.shift is {self.shift}; allowed: 0, 1")
        wrong = [i for i in (self.mask_token_id, *self.eos_token_ids) if not 0 <= i < self.vocab_size]
        if wrong or self.mask_token_id in self.eos_token_ids:
            raise UserError(
                f"Text: mask_token_id {self.mask_token_id}, eos_token_ids {list(self.eos_token_ids)}; ids are 0 .. "
                f"{self.vocab_size - 1}, and the mask ends no text"
            )

    @staticmethod
    def preset(name: str, **changes: Any) -> Text:
        """ "nano", "small", or the size of a published model ("LLaDA-8B"), with fields changed."""
        return family.preset(Text, Text.presets, name, changes)

    @property
    def shape(self) -> tuple[int]:
        """Of one sample: the tokens of a canvas."""
        return (self.length,)

    @property
    def classes(self) -> int:
        """Text has no labels."""
        return 0

    def build(self) -> TextNet:
        """The network, freshly initialised: its predictions are nearly uniform."""
        return TextNet(self)


class TextNet(nn.Module):
    """net(tokens int64 [B, N]) -> logits [B, N, vocab]; with `at` only those of places [B, W]. See
    gen.text.contracts.predictor.

    Sites: what is added, "blocks.3" and inside it "blocks.3.attn" and "blocks.3.mlp"; whole values, "trunk" (embedded
    tokens [B, F, width] -> after the last block), inside it "hidden.3", and "final" (the states of the wanted places ->
    their logits). F are the computed places: all N, or a span's.
    """

    compute_dtypes = (torch.bfloat16, torch.float64)

    def __init__(self, spec: Text):
        super().__init__()
        self.spec = spec
        kv_heads = spec.heads if spec.kv_heads is None else spec.kv_heads
        hidden = 8 * math.ceil(spec.width / 3) if spec.hidden is None else spec.hidden
        self.embed = nn.Embedding(spec.vocab_size, spec.width)
        self.blocks = nn.ModuleList(
            TextBlock(
                i, spec.width, spec.heads, kv_heads, hidden, spec.qkv_bias, spec.qk_norm, spec.norm_eps
            )
            for i in range(spec.depth)
        )  # fmt: skip
        self.norm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.head = None if spec.tied else nn.Linear(spec.width, spec.vocab_size, bias=False)
        self._begin()

    def _begin(self) -> None:
        """Weights N(0, 0.02^2); what is added to the residual stream is smaller the more blocks add to it (GPT-2)."""
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                last = name.endswith(("attn.o.weight", "mlp.w2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.spec.depth) if last else 0.02)

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def mask_token_id(self) -> int:
        return self.spec.mask_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.spec.eos_token_ids

    @property
    def block_size(self) -> int | None:
        return self.spec.block_size

    @property
    def shift(self) -> int:
        return self.spec.shift

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def init_cache(self, rows: int, length: int) -> KvCache:
        """An empty memory for canvases [rows, length], in the network's precision."""
        heads = self.spec.heads if self.spec.kv_heads is None else self.spec.kv_heads
        shape = (rows, heads, length + 1, self.spec.width // self.spec.heads)
        like = self.embed.weight.detach()
        keys, values = ([like.new_zeros(shape) for _ in self.blocks] for _ in range(2))
        return KvCache(keys, values, torch.zeros(rows, length + 1, dtype=torch.bool, device=like.device))

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        kv_cache: KvCache | None = None,
        span: Span | None = None,
        tap: Tap | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, W, vocab] of the tokens at places `at` int64 [B, W], or of all N.

        lengths, memory, span: see gen.text.contracts.predictor. For training, attend: bool [N, N] or [B, N, N], what a
        place (row) sees (column), in the place of the network's own rule and of lengths. positions: int64 [N] or [B,
        N], the places that the rotary angles mean. Place i is predicted by the output at i - shift, place 0 always by
        its own, whatever attend and positions say.
        """
        self._check(tokens, lengths, positions, kv_cache, span, attention_mask, position_ids)
        if kv_cache is not None and span is not None and positions is not None:
            context = self._remembering(tokens, lengths, kv_cache, span)
            padded = torch.cat([tokens, tokens[:, -1:]], 1)
            inner = padded.gather(1, span.positions)  # [B, F]
            wanted: Tensor | None = (positions - self.shift).clamp(min=0) - span.first[:, None]
        else:
            context, inner = self._seeing(tokens, lengths, attention_mask, position_ids), tokens
            if positions is None and self.shift:
                positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
            wanted = positions if positions is None else (positions - self.shift).clamp(min=0)
        h = self.embed(inner)  # [B, F, width]
        h = call_site(tap, "trunk", lambda h: self._trunk(h, context, tap), h)
        if wanted is not None:
            columns = wanted.clamp(0, h.shape[1] - 1)
            h = h.gather(1, columns[..., None].expand(-1, -1, h.shape[-1]))  # [B, W, width]
        return call_site(tap, "final", self._logits, h)

    def _trunk(self, h: Tensor, context: AttentionContext, tap: Tap | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, context, i, tap)
        return h

    def _logits(self, h: Tensor) -> Tensor:
        return linear(self.norm(h), self.embed.weight) if self.head is None else self.head(self.norm(h))

    def _seeing(
        self, tokens: Tensor, lengths: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> AttentionContext:
        """Who sees whom when everything is computed; no mask where everything is seen, for the fast kernels."""
        n = tokens.shape[1]
        positions = torch.arange(n, device=tokens.device)
        cos, sin = self._angles(positions if position_ids is None else position_ids)
        if attention_mask is not None:
            return AttentionContext(cos, sin, seen=attention_mask if attention_mask.ndim == 3 else attention_mask[None])
        rule: MaskRule = (
            BIDIRECTIONAL if self.block_size is None or n <= self.block_size else BlockCausal(self.block_size)
        )
        seen = None if lengths is None else _needed((positions < lengths[:, None])[:, None])  # [B, 1, N]
        if rule != BIDIRECTIONAL and tokens.device.type == "cpu":  # no tiles are skipped: one mask for all layers
            allowed = rule.allowed(positions[:, None], positions)[None]  # [1, N, N]
            rule, seen = BIDIRECTIONAL, allowed if seen is None else seen & allowed
        return AttentionContext(cos, sin, rule, seen)

    def _remembering(self, tokens: Tensor, lengths: Tensor | None, kv_cache: KvCache, span: Span) -> AttentionContext:
        """Who sees whom when a span is computed: all that the memory has seen, the span's own places included."""
        kv_cache.seen.scatter_(1, span.positions, True)
        seen = kv_cache.seen[:, None, : span.stop]  # [B, 1, S]
        keys = torch.arange(span.stop, device=tokens.device)
        if lengths is not None:
            seen = seen & (keys < lengths[:, None])[:, None]
        if self.block_size is not None and span.stop > self.block_size:
            seen = seen & (keys // self.block_size <= (span.positions // self.block_size)[..., None])  # [B, F, S]
        cos, sin = self._angles(span.positions)
        return AttentionContext(cos, sin, BIDIRECTIONAL, _needed(seen), kv_cache, span.positions, span.stop)

    def _angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [F, d] or [B, F, d]."""
        return angles(position_ids, self.spec.width // self.spec.heads, self.spec.theta)

    def _check(
        self,
        tokens: Tensor,
        lengths: Tensor | None,
        positions: Tensor | None,
        kv_cache: KvCache | None,
        span: Span | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> None:
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise UserError(f"tokens are {tokens.dtype} {list(tokens.shape)}; a Text takes torch.int64 [B, N]")
        b, n = tokens.shape
        if position_ids is None and n > self.spec.length:
            raise UserError(f"a canvas of {n} tokens; this Text was made for at most {self.spec.length}")
        if attention_mask is not None and (
            attention_mask.dtype != torch.bool or attention_mask.shape not in ((n, n), (b, n, n))
        ):
            raise UserError(
                f"attend is {attention_mask.dtype} {list(attention_mask.shape)}; for these tokens: torch.bool {[n, n]}"
            )
        if attention_mask is not None and lengths is not None:
            raise UserError("attend says all of what is seen: give it without lengths")
        if kv_cache is None and span is None:
            return
        if (
            kv_cache is None
            or span is None
            or positions is None
            or attention_mask is not None
            or position_ids is not None
        ):
            raise UserError("a memory goes with a span and with places `at`, and without attend and positions")
        if kv_cache.seen.shape != (b, n + 1):
            held = kv_cache.seen.shape
            raise UserError(f"a memory of {held[0]} canvases of {held[1] - 1} tokens, but the tokens are {[b, n]}")


def _needed(seen: Tensor) -> Tensor | None:
    """The mask, or None if all is seen; a GPU would have to wait for a look at the numbers, and keeps its mask."""
    return None if seen.device.type == "cpu" and bool(seen.all()) else seen
