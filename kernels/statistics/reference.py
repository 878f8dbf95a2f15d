"""Statistics of logits as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times.
"""

from __future__ import annotations

import torch

from gen.kernels.statistics.call import StatisticsCall, TokenStatistics

__all__ = ["incompatible_reason", "token_statistics"]


def incompatible_reason(call: StatisticsCall) -> str | None:
    """Return why the statistics are not defined, or None.

    Args:
        call: the complete arguments.
    """
    return None if call.logits.is_floating_point() else f"logits are {call.logits.dtype}"


def token_statistics(call: StatisticsCall) -> TokenStatistics:
    """Return the statistics by argmax, log-sum-exp and softmax over the whole vocabulary.

    Args:
        call: the complete arguments.
    """
    logits, mask_token_id = call
    kind = torch.promote_types(logits.dtype, torch.float32)
    x = logits.double()
    if mask_token_id is not None:
        x = x.index_fill(-1, torch.tensor(mask_token_id, device=x.device), -torch.inf)
    best = x.argmax(-1, keepdim=True)  # the lowest index among equals, as is promised
    second = x.detach().scatter(-1, best, -torch.inf).argmax(-1, keepdim=True)
    best_logit, second_logit = x.gather(-1, best), x.gather(-1, second)
    best, second = best.where(best_logit > -torch.inf, 0), second.where(second_logit > -torch.inf, 0)
    logp = x.log_softmax(-1)
    possible = x > -torch.inf
    entropy = -(logp.where(possible, 0).exp() * logp.where(possible, 0)).where(possible, 0).sum(-1)
    numbers = (v.to(kind) for v in (best_logit[..., 0], second_logit[..., 0], x.logsumexp(-1), entropy))
    return TokenStatistics(best[..., 0], second[..., 0], *numbers)
