"""Shared pieces of KV plans: steps that compute more than the window, and predictors that do not fit."""

from __future__ import annotations

from torch import Tensor

from gen.config.errors import UserError
from gen.text.contracts import KvStep, Predictor

__all__ = ["check_block_causal", "is_refresh", "whole_canvas_where"]


def check_block_causal(plan: object, predictor: Predictor) -> None:
    """Raise UserError unless the predictor's attention is block-causal.

    Args:
        plan: its class is named in the message.
        predictor: a network or its spec.
    """
    if predictor.block_size is None:
        raise UserError(
            f"{type(plan).__name__} is for predictors whose attention is block-causal, and in this one every position "
            "sees every other: use prefix, dual or vicinity"
        )


def is_refresh(step: KvStep, refresh: int | None, first: Tensor) -> Tensor:
    """Return where more than the window is computed, bool [B]: at `first`, and at every refresh-th step of a window.

    Args:
        step: inputs of the step.
        refresh: None for never.
        first: bool [B].
    """
    return first if refresh is None else first | (step.index % refresh == 0)


def whole_canvas_where(full: Tensor, step: KvStep, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the span first .. last, or the whole canvas where `full`.

    Args:
        full: bool [B].
        step: inputs of the step.
        first, last: bounds of the span, int64 [B].
    """
    return first.masked_fill(full, 0), last.where(~full, step.text_end)
