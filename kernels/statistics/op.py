"""Statistics of logits that decoding needs, in one pass over the vocabulary."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.statistics import chunked, reference, triton_launch
from gen.kernels.statistics.call import StatisticsCall

__all__ = ["token_statistics"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("chunked", chunked.run, chunked.incompatible_reason),
    Backend("reference", reference.token_statistics, reference.incompatible_reason),
)
def token_statistics(logits: Tensor, mask_token_id: int | None = None) -> StatisticsCall:
    """Compute TokenStatistics of each row, read once; no softmax over the vocabulary is stored.

    The four numbers are differentiable.

    Args:
        logits: [..., V], at least one finite in every row.
        mask_token_id: a token that is never drawn; its logit counts as -inf. None for none.

    Returns:
        TokenStatistics of [...].

    Raises:
        ValueError: if fewer than two tokens may be drawn, or mask_token_id is none of them.
    """
    size = logits.shape[-1]
    if mask_token_id is not None and not 0 <= mask_token_id < size:
        raise ValueError(f"token_statistics: mask_token_id is {mask_token_id}; it must be in 0 ... {size - 1}")
    if size - (mask_token_id is not None) < 2:
        raise ValueError(f"token_statistics: of {size} logits fewer than two tokens may be drawn")
    return StatisticsCall(logits, mask_token_id)
