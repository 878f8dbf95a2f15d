"""What plans of keys and values share: when everything is computed, and whom they refuse."""

from __future__ import annotations

from torch import Tensor

from gen.config.errors import UserError
from gen.text.contracts import KvStep, Predictor

__all__ = ["at_least", "due", "needs_blocks", "whole_where"]


def at_least(plan: object, **lowest: int) -> None:
    """Raises UserError for a field below its lowest value; None is always allowed."""
    for name, low in lowest.items():
        value = getattr(plan, name)
        if value is not None and value < low:
            raise UserError(f"{type(plan).__name__}: {name} = {value}; it must be at least {low}")


def needs_blocks(plan: object, predictor: Predictor) -> None:
    """Raises UserError unless the predictor's attention is block-causal."""
    if predictor.block_size is None:
        raise UserError(
            f"{type(plan).__name__} is for predictors whose attention is block-causal, and in this one every place "
            "sees every other: use prefix, dual or vicinity"
        )


def due(step: KvStep, refresh: int | None, first: Tensor) -> Tensor:
    """Where more is computed than the window, bool [B]: where `first`, and at every refresh-th step of a window."""
    return first if refresh is None else first | (step.index % refresh == 0)


def whole_where(full: Tensor, step: KvStep, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The span first .. last, or the whole canvas where `full` [B]."""
    return first.masked_fill(full, 0), last.where(~full, step.text_end)
