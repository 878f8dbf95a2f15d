"""Text: the transformer of masked language diffusion, a Predictor (LLaDA, Dream, SDAR, LLaDA2, BD3-LM)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import BIDIRECTIONAL, SHORTEST, BlockCausal, BlockDiffusion, MaskRule
from gen.models.layers import family
from gen.models.layers.block import run_block
from gen.models.layers.experts import Experts
from gen.models.layers.text import AttentionContext, TextBlock, rope_angles, rows_at
from gen.text.contracts import KvCache, Span, Tokenizer
from gen.text.documents import document_positions, document_starts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Text", "TextNet"]

_QWEN = {"kv_heads": 4, "theta": 1e6, "norm_eps": 1e-6, "qkv_bias": True, "shift": 1}
_QWEN_7B = {**_QWEN, "width": 3584, "depth": 28, "heads": 28, "hidden": 18944, "vocab_size": 152064}
_QWEN3 = {"vocab_size": 151936, "kv_heads": 8, "theta": 1e6, "norm_eps": 1e-6, "qk_norm": True}


@dataclass(frozen=True)
class Text(family.Family):
    """A Llama-like transformer with bidirectional attention: RMS norms, rotary embedding, SwiGLU, grouped queries.

    Presets: "nano", "small" (MDLM's and BD3-LM's size), "LLaDA-8B", "Dream-7B", "Fast-dLLM-v2-7B", "SDAR-1.7B" and
    "LLaDA2-mini".

    Attributes:
        vocab_size: number of ids, the mask's among them.
        length: tokens of the longest canvas.
        width, depth, heads: channels, blocks, and attention heads of a block.
        kv_heads: heads of keys and values; None for as many as `heads`.
        head_dim: channels of a head; None for width / heads.
        hidden: channels of the SwiGLU; None for 8/3 of the width.
        experts: mixture of experts in place of the SwiGLUs (gen.models.layers.experts.Experts); None for none.
        theta: base of the rotary angles.
        rotary: channels of a head that are rotated (gen.models.layers.text.rope_angles); None for all.
        norm_eps: of the RMS norms.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: RMS-normalise queries and keys within each head (Qwen3).
        tied: the head is the embedding table.
        block_size, shift: see gen.text.contracts.Predictor.
        mask_token_id, eos_token_ids: ids of the mask token and of the tokens that end a text.
        tokenizer: maps strings to ids, if it is known (gen.text.tokenizers).
    """

    presets: ClassVar[family.Presets] = {
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
        "SDAR-1.7B": {
            **_QWEN3,
            "length": 32768,
            "width": 2048,
            "depth": 28,
            "heads": 16,
            "hidden": 6144,
            "block_size": 4,
            "mask_token_id": 151669,
            "eos_token_ids": (151643, 151645),
        },
        "LLaDA2-mini": {
            "vocab_size": 157184,
            "length": 32768,
            "width": 2048,
            "depth": 20,
            "heads": 16,
            "kv_heads": 4,
            "hidden": 5120,
            "theta": 6e5,
            "rotary": 64,
            "qk_norm": True,
            "experts": Experts(256, 8, 512, 512, 1, "sigmoid", True, 8, 4, True, 2.5),
            "block_size": 32,
            "mask_token_id": 156895,
            "eos_token_ids": (156892,),
        },
    }

    vocab_size: int = 258
    length: int = 256
    width: int = 384
    depth: int = 6
    heads: int = 6
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    experts: Experts | None = None
    theta: float = 10_000.0
    rotary: int | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    block_size: int | None = None
    shift: int = 0
    mask_token_id: int = 257
    eos_token_ids: tuple[int, ...] = (256,)
    tokenizer: Tokenizer | None = part("text.tokenizers", default=None)

    def __post_init__(self) -> None:
        family.at_least(self, vocab_size=2, length=1, width=2, depth=1, heads=1)
        check_fields(self, kv_heads="[1, inf)", hidden="[1, inf)", block_size="[1, inf)", shift="[0, 1]")
        check_fields(self, theta="(0, inf)", norm_eps="[0, inf)", head_dim="[2, inf)", rotary="[2, inf)")
        if (self.head_dim is None and self.width % (2 * self.heads)) or self.heads % self.key_heads or self.dim % 2:
            raise UserError(
                f"Text: width {self.width}, heads {self.heads}, kv_heads {self.key_heads}, head_dim {self.head_dim}; "
                "head_dim or else width / heads must be an even number, and heads / kv_heads a whole one"
            )
        if self.rotary is not None and (self.rotary % 2 or self.rotary > self.dim):
            raise UserError(f"Text: rotary {self.rotary}; allowed: an even number up to {self.dim}, a head's channels")
        if self.experts is not None and self.experts.dense >= self.depth:
            raise UserError(f"Text: {self.experts.dense} blocks without experts; allowed: 0 .. {self.depth - 1}")
        wrong = [i for i in (self.mask_token_id, *self.eos_token_ids) if not 0 <= i < self.vocab_size]
        if wrong or self.mask_token_id in self.eos_token_ids:
            raise UserError(
                f"Text: mask_token_id {self.mask_token_id}, eos_token_ids {list(self.eos_token_ids)}; ids are 0 .. "
                f"{self.vocab_size - 1}, and the mask ends no text"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def shape(self) -> tuple[int]:
        """Shape of one sample: the tokens of a canvas."""
        return (self.length,)

    @property
    def classes(self) -> int:
        """Number of classes: text has none."""
        return 0

    def build(self) -> TextNet:
        """Return the network, freshly initialised: its predictions are nearly uniform."""
        return TextNet(self)


class TextNet(nn.Module):
    """The network of a Text; keeps the contract gen.text.contracts.Predictor.

    Sites: residuals "blocks.3" and inside it "blocks.3.attn" and "blocks.3.mlp"; whole values "trunk" (embedded tokens
    [B, F, width] -> after the last block), inside it "hidden.3", and "final" (hidden states of the queried positions ->
    their logits). F are the computed positions: all N, or a span's.

    Attributes:
        processes: number of those that the weights are shared out over, see `parallelize`.
        shareable: whether they can be, and blocks can lie on several devices.
    """

    compute_dtypes = (torch.bfloat16, torch.float16, torch.float64)
    processes = 1
    shareable = True

    def __init__(self, spec: Text):
        super().__init__()
        self.spec = spec
        hidden = 8 * math.ceil(spec.width / 3) if spec.hidden is None else spec.hidden
        dense = spec.depth if spec.experts is None else spec.experts.dense
        self.embed = nn.Embedding(spec.vocab_size, spec.width)
        self.blocks = nn.ModuleList(
            TextBlock(
                i, spec.width, spec.heads, spec.key_heads, hidden, spec.qkv_bias, spec.qk_norm, spec.norm_eps, spec.dim,
                None if i < dense else spec.experts,
            )
            for i in range(spec.depth)
        )  # fmt: skip
        self.norm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.head = None if spec.tied else nn.Linear(spec.width, spec.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """Draw weights N(0, 0.02^2), smaller where a block's output is added the more blocks there are (GPT-2)."""
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim >= 2:
                last = name.endswith(("attn.o.weight", "mlp.w2.weight", "mlp.experts.w2", "mlp.shared.w2.weight"))
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

    def parallelize(self, mesh: DeviceMesh) -> None:
        """Share the weights out over the processes of a mesh; see gen.models.layers.tensor_parallel."""
        from gen.models.layers.tensor_parallel import parallelize_text

        parallelize_text(self, mesh)
        self.processes = mesh.size()

    def init_cache(self, rows: int, length: int) -> KvCache:
        """Return an empty KV cache for canvases [rows, length], in the network's precision."""
        shape, table = (rows, self.spec.key_heads // self.processes, length + 1, self.spec.dim), self.embed.weight
        keys, values = (
            [torch.zeros(shape, dtype=table.dtype, device=table.device) for _ in self.blocks] for _ in range(2)
        )
        return KvCache(keys, values, torch.zeros(rows, length + 1, dtype=torch.bool, device=table.device))

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        kv_cache: KvCache | None = None,
        span: Span | None = None,
        tap: Tap | None = None,
        documents: Tensor | None = None,
        block_diffusion: int | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the logits [B, W, vocab_size] of the queried positions.

        Position i is predicted by the output at i - shift, the first of a document always by its own.

        Args:
            tokens, lengths, positions, kv_cache, span: see gen.text.contracts.Predictor.
            tap: see gen.diffusion.tap.
            documents: the document of each position, int64 [B, N] (gen.text.documents): attention stays within each.
                With blocks each begins at a multiple of block_size. None for one document.
            block_diffusion: for training in blocks of so many tokens: the canvas is a noisy text and after it the same
                text clean, N / 2 tokens each, under gen.kernels.attention.BlockDiffusion instead of the network's own
                rule. None for one text.
            position_ids: positions of the rotary embedding, int64 [N] or [B, N]; None for 0 .. N - 1, or twice
                0 .. N / 2 - 1 under block_diffusion, from 0 in each document.
        """
        self._check(tokens, positions, kv_cache, span, documents, block_diffusion, position_ids)
        if kv_cache is not None and span is not None and positions is not None:
            context = self._span_context(tokens, lengths, kv_cache, span)
            computed = torch.cat([tokens, tokens[:, -1:]], 1).gather(1, span.positions)  # [B, F]
            columns: Tensor | None = (positions - self.shift).clamp(min=0) - span.first[:, None]
        else:
            context = self._canvas_context(tokens, lengths, documents, block_diffusion, position_ids)
            computed = tokens
            if positions is None and self.shift:
                positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
                positions = positions if documents is None else positions + self.shift * document_starts(documents)
            columns = positions if positions is None else (positions - self.shift).clamp(min=0)
        columns = None if columns is None else columns.clamp(0, computed.shape[1] - 1)
        few = columns is not None and columns.shape[1] < computed.shape[1] and context.documents is None
        few = few and tap is None and not torch.is_grad_enabled()
        h = self.embed(computed)  # [B, F, width]
        h = call_site(tap, "trunk", lambda h: self._trunk(h, context, tap, columns if few else None), h)
        if columns is not None and not few:
            h = rows_at(h, columns)  # [B, W, width]
        return call_site(tap, "final", self._logits, h)

    def _trunk(self, h: Tensor, context: AttentionContext, tap: Tap | None, columns: Tensor | None = None) -> Tensor:
        """Return the output of the blocks, [B, F, width]; with `columns`, the last block's at those alone."""
        for i, block in enumerate(self.blocks):
            if columns is not None and i == len(self.blocks) - 1 and isinstance(block, TextBlock):
                own = context.at(columns)
                own = replace(own, mask=None if own.mask is None else _mask_or_none(own.mask))
                return block.at(h, context, columns, own)
            h = run_block(block, h, context, i, tap)
        return h

    def _logits(self, h: Tensor) -> Tensor:
        return linear(self.norm(h), self.embed.weight) if self.head is None else self.head(self.norm(h))

    def _canvas_context(
        self,
        tokens: Tensor,
        lengths: Tensor | None,
        documents: Tensor | None,
        block_diffusion: int | None,
        position_ids: Tensor | None,
    ) -> AttentionContext:
        """Return who attends to whom when all is computed; no mask where all is seen, for the fast kernels."""
        n, positions = tokens.shape[1], torch.arange(tokens.shape[1], device=tokens.device)
        rule = self._rule(n) if block_diffusion is None else BlockDiffusion(n // 2, block_diffusion)
        if position_ids is None:
            length = n if block_diffusion is None else n // 2
            position_ids = positions % length
            if documents is not None:
                position_ids = document_positions(documents[:, :length]).repeat(1, n // length)
        cos, sin = self._angles(position_ids)
        mask = None if lengths is None else _mask_or_none((positions < lengths[:, None])[:, None])  # [B, 1, N]
        short = tokens.device.type == "cpu" and n < SHORTEST  # no tiles are left out: one mask for all layers
        if short and (rule != BIDIRECTIONAL or documents is not None):
            allowed = rule.allowed(positions[:, None], positions)[None]  # [1, N, N]
            if documents is not None:
                allowed = allowed & (documents[..., None] == documents[:, None])
            rule, mask, documents = BIDIRECTIONAL, allowed if mask is None else mask & allowed, None
        return AttentionContext(cos, sin, rule, mask, documents=documents)

    def _rule(self, n: int) -> MaskRule:
        """Return the network's own rule of n positions."""
        size = self.block_size
        return BIDIRECTIONAL if size is None or n <= size else BlockCausal(size)

    def _span_context(self, tokens: Tensor, lengths: Tensor | None, kv_cache: KvCache, span: Span) -> AttentionContext:
        """Return who attends to whom when a span is computed: each to all that the cache holds by then."""
        kv_cache.filled.scatter_(1, span.positions, True)
        mask = kv_cache.filled[:, None, : span.stop]  # [B, 1, S]
        keys, block_size = torch.arange(span.stop, device=tokens.device), self.block_size
        if lengths is not None:
            mask = mask & (keys < lengths[:, None])[:, None]
        if block_size is not None and span.stop > block_size:
            mask = mask & (keys // block_size <= (span.positions // block_size)[..., None])  # [B, F, S]
        cos, sin = self._angles(span.positions)
        return AttentionContext(cos, sin, BIDIRECTIONAL, _mask_or_none(mask), kv_cache, span.positions, span.stop)

    def _angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return rope_angles(position_ids, self.spec.dim, self.spec.theta, self.spec.rotary)

    def _check(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        kv_cache: KvCache | None,
        span: Span | None,
        documents: Tensor | None,
        block_diffusion: int | None,
        position_ids: Tensor | None,
    ) -> None:
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise UserError(f"tokens are {tokens.dtype} {list(tokens.shape)}; a Text takes torch.int64 [B, N]")
        (b, n), cached = tokens.shape, (kv_cache is None, span is None)
        if block_diffusion is not None and (block_diffusion < 1 or n % 2):
            raise UserError(f"{n} tokens in blocks of {block_diffusion}; expected an even number, and at least 1")
        longest = n if block_diffusion is None else n // 2
        if position_ids is None and longest > self.spec.length:
            raise UserError(f"a canvas of {longest} tokens; this Text was made for at most {self.spec.length}")
        if documents is not None and (documents.dtype != torch.int64 or documents.shape != (b, n)):
            raise UserError(f"documents are {documents.dtype} {list(documents.shape)}; expected torch.int64 {[b, n]}")
        if all(cached):
            return
        if any(cached) or positions is None or any(v is not None for v in (documents, block_diffusion, position_ids)):
            raise UserError("a kv_cache needs a span and positions, and goes without documents, block_diffusion and "
                            "position_ids")  # fmt: skip
        if kv_cache is not None and kv_cache.filled.shape != (b, n + 1):
            rows, slots = kv_cache.filled.shape
            raise UserError(f"a KV cache of {rows} canvases of {slots - 1} tokens, but the tokens are {[b, n]}")


def _mask_or_none(mask: Tensor) -> Tensor | None:
    """Return the mask, or None if it is all True; a GPU would have to wait for a look at the numbers, and keeps it."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask
