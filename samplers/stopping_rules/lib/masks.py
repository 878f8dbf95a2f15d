"""Shared pieces of stopping rules: open masks, end-of-text tokens, means over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.text.contracts import Predictor, StepView

__all__ = ["is_eos", "masked_mean", "open_masks"]


def is_eos(tokens: Tensor, predictor: Predictor) -> Tensor:
    """Return where an end-of-text token stands, bool of tokens' shape.

    Args:
        tokens: ids, int64.
        predictor: whose eos_token_ids count.
    """
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token in predictor.eos_token_ids:  # a few: a tensor of them would have to be copied to the device first
        found = found | (tokens == token)
    return found


def open_masks(view: StepView) -> Tensor:
    """Return the masks of a view, in the window or not, [B, W].

    Args:
        view: inputs of the step.
    """
    return view.masked | view.outside_window


def masked_mean(value: Tensor, where: Tensor) -> Tensor:
    """Return the mean over some positions of each row, [B]; nan for rows that have none.

    Args:
        value: numbers [B, W].
        where: positions that count, bool [B, W].
    """
    return value.masked_fill(~where, 0).sum(-1) / where.sum(-1)
