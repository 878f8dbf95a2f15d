"""Attention by PyTorch's FlexAttention, compiled, with a block mask of what rule and documents allow.

The block mask is made from some queries at a time: PyTorch's own function writes the mask of N x N down first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, MaskRule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["block_mask", "incompatible_reason", "run"]

TILE = 128  # queries and keys of a block, as FlexAttention has them
_of_documents = WeakTensorKeyDictionary()  # block masks by documents, which all layers of a network share


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why FlexAttention cannot compute the call, or None."""
    device, dtype = call.q.device.type, call.q.dtype
    if call.attn_mask is not None:
        return "a mask that is no rule would need a block mask of its own for every call"
    if device not in ("cpu", "cuda"):
        return f"no FlexAttention on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no FlexAttention of {dtype}"
    given = (call.q, call.k, call.v, call.q_gain, call.k_gain)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return "FlexAttention has no gradient on cpu" if device == "cpu" and wanted else None


def run(call: AttentionCall) -> Tensor:
    """Compute the attention under a block mask."""
    call, compiling = call.after_norm_rope(), torch.compiler.is_compiling()
    mask = None
    if not isinstance(call.rule, Bidirectional) or call.documents is not None:
        mask = _traced_mask(call) if compiling else _cached_mask(call)
    shared = call.q.shape[2] not in (call.k.shape[2],)  # of symbols in a graph != would be a symbol
    q, k, v = (t.transpose(1, 2) for t in (call.q, call.k, call.v))  # views: each [B, heads, N, d]
    return _flex(compiling)(q, k, v, block_mask=mask, scale=call.scale, enable_gqa=shared).transpose(1, 2)


def _flex(compiling: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Tensor] = flex_attention
    return attend if compiling else _compiled()


@cache
def _compiled() -> Callable[..., Tensor]:
    """Uncompiled it would hold all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _cached_mask(call: AttentionCall) -> BlockMask:
    about = call.rule, call.q.shape[1], call.k.shape[1], call.start_pos
    if call.documents is None:
        return _mask_of_rule(*about, call.q.device)
    known: dict[object, BlockMask] = _of_documents.setdefault(call.documents, {})
    if about not in known:  # what the mask holds is another tensor, so that it goes with the documents
        known[about] = block_mask(*about, call.q.device, call.documents.detach())
    return known[about]


@lru_cache(maxsize=256)  # a cache of keys and values has another shape with every step
def _mask_of_rule(rule: MaskRule, nq: int, nk: int, start: int, device: torch.device) -> BlockMask:
    return block_mask(rule, nq, nk, start, device)


def _traced_mask(call: AttentionCall) -> BlockMask:
    """Return the block mask inside of a graph that is being traced, where no cache counts; the compiler fuses it."""
    from torch.nn.attention.flex_attention import create_block_mask

    (b, nq), nk, documents = call.q.shape[:2], call.k.shape[1], call.documents
    allowed = partial(_allowed, call.rule, call.start_pos, documents)
    return create_block_mask(allowed, None if documents is None else b, None, nq, nk, device=call.q.device)


def block_mask(
    rule: MaskRule, nq: int, nk: int, start: int, device: torch.device, documents: Tensor | None = None
) -> BlockMask:
    """Return the block mask of nq queries from position `start` on, and nk keys.

    Args:
        rule: the mask rule.
        nq, nk, start: see AttentionCall.
        device: of the mask.
        documents: int64 [B or 1, N] or None, see AttentionCall.
    """
    from torch.nn.attention.flex_attention import BlockMask

    samples = torch.arange(1 if documents is None else len(documents), device=device)
    keys = torch.arange(nk, device=device)
    whole, part = [], []
    for first in range(0, nq, TILE):
        queries = torch.arange(first, min(first + TILE, nq), device=device)
        allowed = _allowed(rule, start, documents, samples[:, None, None], None, queries[:, None], keys)
        allowed = allowed.expand(len(samples), len(queries), nk)
        tiles = torch.nn.functional.pad(allowed, (0, -nk % TILE, 0, TILE - len(queries))).unflatten(2, (-1, TILE))
        every, some = tiles.all(3).all(1), tiles.any(3).any(1)  # [B, tiles of keys]
        whole.append(every)
        part.append(some & ~every)
    rows = partial(_allowed, rule, start, documents)
    return BlockMask.from_kv_blocks(*_listed(part), *_listed(whole), TILE, rows, (nq, nk))


def _listed(kind: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return how many tiles of keys are of a kind for each of queries, [B, 1, Q], and these first, [B, 1, Q, K]."""
    tiles = torch.stack(kind, 1)[:, None]
    return tiles.sum(-1).int(), (~tiles).int().argsort(dim=-1, stable=True).int()


def _allowed(
    rule: MaskRule, start: int, documents: Tensor | None, b: Tensor, h: Tensor | None, q: Tensor, k: Tensor
) -> Tensor:
    """Return whether query q of sample b attends to key k: FlexAttention's mask_mod, but for the first three."""
    allowed = rule.allowed(q + start, k)
    if documents is None:
        return allowed
    row = b if documents.shape[0] > 1 else b * 0
    return allowed & (documents[row, q + start] == documents[row, k])
