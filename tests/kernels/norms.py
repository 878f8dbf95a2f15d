"""Inputs of modulated norms and gated residual sums, as models make them: modulations are views of one product."""

from __future__ import annotations

import torch

# kind, gained, per_token: every pair of values is there.
CASES = [("layer", False, False), ("layer", True, True), ("rms", False, True), ("rms", True, False)]


def modulated(kind, gained, per_token, dtype, b=2, n=11, d=40):
    rows = torch.randn(b, n if per_token else 1, 2 * d).to(dtype)
    gain = torch.randn(d).to(dtype) if gained else None
    return (torch.randn(b, n, d) * 2 + 1).to(dtype), *rows.chunk(2, -1), gain, kind, 1e-5


def gated(kind, gained, per_token, dtype, b=2, n=11, d=40):
    x, scale, shift, gain, kind, eps = modulated(kind, gained, per_token, dtype, b, n, d)
    y, gate = torch.randn(b, n, d).to(dtype), torch.randn(scale.shape).to(dtype)
    return x, y, gate, scale, shift, gain, kind, eps


def in_autocast(inputs, wide=True):
    """The same numbers as autocast has them: the stream x in float32, or not, the gain too, all else in bfloat16."""
    x, y, gate, scale, shift, gain, kind, eps = inputs
    narrow = (v.bfloat16() for v in (y, gate, scale, shift))
    return (x.float() if wide else x.bfloat16()), *narrow, None if gain is None else gain.float(), kind, eps
