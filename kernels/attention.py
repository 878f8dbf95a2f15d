"""Attention over packed q, k and v, under a rule of who sees whom."""

from __future__ import annotations

from torch import Tensor

from gen.kernels import reference
from gen.kernels.backends import attention_flex, attention_sdpa, attention_triton, attention_xformers
from gen.kernels.dispatch import Backend, Op
from gen.kernels.rules import Bidirectional, Rule

__all__ = ["attention"]

EVERYONE = Bidirectional()


def call(qkv: Tensor, rule: Rule = EVERYONE, scale: float | None = None) -> tuple[Tensor, Rule, float]:
    """softmax(scale q k^T) v of every head: qkv [B, N, 3, H, d] -> [B, N, H, d].

    qkv: as one product of a linear layer lays it out; read where it lies, never copied or permuted. rule: which places
    see which (gen.kernels.rules); everyone everyone, by default. scale: 1 / sqrt(d) by default. A query that sees no
    key gets 0. ValueError for another shape, and for a rule that is of another number of places.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention: qkv is {list(qkv.shape)}; it must be [B, N, 3, H, d]")
    reason = rule.unfit(qkv.shape[1])
    if reason is not None:
        raise ValueError(f"attention: qkv has {qkv.shape[1]} places; {reason}")
    return qkv, rule, qkv.shape[-1] ** -0.5 if scale is None else scale


def _anything(qkv: Tensor, rule: Rule, scale: float) -> str | None:
    return None


# First what PyTorch has for the rule; then what skips the tiles that a rule forbids; then the formula itself.
attention = Op(
    "attention",
    call,
    (
        Backend("sdpa", attention_sdpa.refuses, attention_sdpa.run, attention_sdpa.detail),
        Backend("triton", attention_triton.refuses, attention_triton.run),
        Backend("flex", attention_flex.refuses, attention_flex.run),
        Backend("xformers", attention_xformers.refuses, attention_xformers.run),
        Backend("reference", _anything, reference.attention),
    ),
)
