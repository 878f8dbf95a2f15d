"""Statistics of logits as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["token_statistics"]


def token_statistics(logits: Tensor, mask_token: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """best, second, top, next, lse, entropy; the last four in float32, or float64 if the logits are."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    x = logits.double()
    if mask_token is not None:
        x = x.index_fill(-1, torch.tensor(mask_token, device=x.device), -torch.inf)
    best = x.argmax(-1, keepdim=True)  # the lowest index among equals, as is promised
    second = x.detach().scatter(-1, best, -torch.inf).argmax(-1, keepdim=True)
    top, after = x.gather(-1, best), x.gather(-1, second)
    best, second = best.where(top > -torch.inf, 0), second.where(after > -torch.inf, 0)
    lse = x.logsumexp(-1)
    logp = x.log_softmax(-1)
    possible = x > -torch.inf
    entropy = -(logp.where(possible, 0).exp() * logp.where(possible, 0)).where(possible, 0).sum(-1)
    numbers = [v.to(kind) for v in (top[..., 0], after[..., 0], lse, entropy)]
    return best[..., 0], second[..., 0], numbers[0], numbers[1], numbers[2], numbers[3]
