"""The complete arguments of an attention, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gen.kernels.attention.rules import MaskRule
from gen.kernels.rope import Pairs, norm_rope

__all__ = ["AttentionCall"]


class AttentionCall(NamedTuple):
    """softmax(scale q k^T) v of every head, over the keys that the rule and the mask allow.

    Attributes:
        q: queries [B, Nq, H, d].
        k, v: keys and values [B, Nk, Hkv, d]; Hkv divides H.
        rule: mask rule over positions; the keys are positions 0 ... Nk - 1.
        scale: factor of q k^T.
        attn_mask: bool [B or 1, Nq or 1, Nk], True where a key may be attended to if the rule allows it too; or None.
        start_pos: position of the first query.
        q_gain, k_gain: gains [d] of the RMS norm that q and k have not had yet, or None.
        eps: of this norm.
        cos, sin: tables [N, d] or [B or 1, N, d] of the rotation that q and k have not had yet, or None.
        pairs: which channels rotate together.
        qkv: packed tensor [B, N, 3, H, d] of which q, k and v are views, or None.
        documents: int64 [B or 1, N], the document of each position; a query attends to keys of its own alone. None for
            one document.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rule: MaskRule
    scale: float
    attn_mask: Tensor | None = None
    start_pos: int = 0
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    eps: float = 1e-6
    cos: Tensor | None = None
    sin: Tensor | None = None
    pairs: Pairs = "adjacent"
    qkv: Tensor | None = None
    documents: Tensor | None = None

    @property
    def needs_norm_rope(self) -> bool:
        """Whether q or k is still to be normed or rotated."""
        return self.q_gain is not None or self.k_gain is not None or self.cos is not None

    def after_norm_rope(self) -> AttentionCall:
        """Return the call with q and k normed and rotated; itself if there is nothing to do."""
        if not self.needs_norm_rope:
            return self
        q, k, rotary = self.q, self.k, (self.cos, self.sin, self.pairs)
        if self.qkv is not None and self.q_gain is None and self.k_gain is None:  # the same for q and k: in one go
            q, k = norm_rope(self.qkv[:, :, :2].flatten(2, 3), None, self.eps, *rotary).chunk(2, 2)
        else:
            if self.q_gain is not None or self.cos is not None:
                q = norm_rope(q, self.q_gain, self.eps, *rotary)
            if self.k_gain is not None or self.cos is not None:
                k = norm_rope(k, self.k_gain, self.eps, *rotary)
        return self._replace(q=q, k=k, q_gain=None, k_gain=None, cos=None, sin=None, qkv=None)

    def allowed(self) -> Tensor:
        """Return which keys each query attends to by rule, mask and documents, bool [Nq, Nk] or [B or 1, Nq, Nk]."""
        nq, nk, device = self.q.shape[1], self.k.shape[1], self.q.device
        position = torch.arange(self.start_pos, self.start_pos + nq, device=device)
        allowed = self.rule.allowed(position[:, None], torch.arange(nk, device=device))
        if self.documents is not None:
            mine = self.documents[:, self.start_pos : self.start_pos + nq]
            allowed = allowed & (mine[..., None] == self.documents[:, None, :nk])
        return allowed if self.attn_mask is None else allowed & self.attn_mask
